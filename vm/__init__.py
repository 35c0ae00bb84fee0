"""A real Debian in a box: boots a guest with cgroup v2 and this project installed, and runs one command in it.

The entry is ``vm/run``; the package uses nothing but the standard library, because it runs before any
virtual environment exists. ``vm/README.md`` explains the layers and the exit statuses.
"""
