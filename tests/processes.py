"""Processes as tests look at them."""

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Not a zombie: it has left its cgroup for good, only its parent has not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False
