"""The kernel half: what this kernel can do with BPF, the programs themselves, and their loader.

Knows cgroup ids, not agents, and imports no other part of the project.
"""
