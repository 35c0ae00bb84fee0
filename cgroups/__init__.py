"""cgroup v2 as typed Python: files, not agents.

One :class:`~agentcgroup.cgroups.cgroup.Cgroup` is one held directory of the cgroup2 filesystem; one row of
:mod:`~agentcgroup.cgroups.files` is one interface file with its type. Nothing here knows what an agent is,
and nothing here imports another part of the project. The kernel interface is
Documentation/admin-guide/cgroup-v2.rst.
"""
