"""The kernel half: what this kernel can do with BPF, and (to come) the programs themselves and their loader.

Knows cgroup ids, not agents, and imports no other part of the project.
"""
