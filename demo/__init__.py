"""The main job: three agents at work on real projects, every tool call in a resource domain of its own.

`make run` starts it (`python -m demo --help` explains it). It fetches real projects from the package registries, starts the
real daemon natively or in the guest of `vm/`, lets three scripted harnesses make real tool calls under a host budget smaller
than the sum of their peaks, shows them live, and checks at the end that everything happened that has to happen.
"""
