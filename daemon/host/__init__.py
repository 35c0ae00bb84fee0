"""The machine behind one Protocol: cgroups, processes, containers, systemd."""
