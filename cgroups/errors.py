"""What can go wrong on the cgroup2 filesystem, as one small family of exceptions that all carry the path.

Every exception is an :class:`OSError` with ``path`` and ``errno``, so a caller that only knows files still
handles them. Which errno means what follows Documentation/admin-guide/cgroup-v2.rst and
kernel/cgroup/cgroup.c.
"""

import errno
import os
from typing import Self

__all__ = [
    "BadFormat",
    "CgroupBusy",
    "CgroupError",
    "CgroupExists",
    "CgroupGone",
    "ControllerMissing",
    "InterfaceMissing",
    "NotCgroup2",
    "NotDelegated",
    "ProcessGone",
    "SpawnFailed",
]


class CgroupError(OSError):
    """The kernel refused something on a cgroup; base of this family.

    ``path`` is the file or directory concerned, ``errno`` the kernel's code (0 when no system call failed),
    and ``reason`` the sentence without the path: cause first, next step after it.
    """

    path: str
    reason: str

    def __init__(self, path: str | os.PathLike[str], reason: str = "", error_number: int = 0) -> None:
        self.path = os.fspath(path)
        self.reason = reason or (os.strerror(error_number) if error_number else "cgroup error")
        super().__init__(error_number, self.reason)

    def __str__(self) -> str:
        code = errno.errorcode.get(self.errno or 0)
        return f"{self.path}: {self.reason}" + (f" [{code}]" if code else "")

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, int]]:
        return type(self), (self.path, self.reason, self.errno or 0)


class CgroupGone(CgroupError):
    """The cgroup was removed (ENOENT or ENODEV on a held directory) or its handle was closed.

    Normal, not a fault.
    """


class CgroupBusy(CgroupError):
    """EBUSY.

    The cgroup has processes or children, or may not have processes because it controls its children.
    """


class CgroupExists(CgroupError):
    """A child of that name exists already."""


class NotCgroup2(CgroupError):
    """The directory is not on a cgroup2 filesystem, or no cgroup2 filesystem is mounted."""


class NotDelegated(CgroupError):
    """EACCES, EPERM or EROFS: this process may not change that cgroup."""


class InterfaceMissing(CgroupError):
    """The interface file does not exist here, so the value cannot be set."""


class ControllerMissing(InterfaceMissing):
    """The interface file does not exist because its controller is not enabled for this cgroup."""


class BadFormat(CgroupError):
    """The text of an interface file is not what the kernel documents, or a value cannot be written."""


class ProcessGone(CgroupError):
    """ESRCH: no process with that pid can be moved or read; it has ended or is not visible from here."""


class SpawnFailed(CgroupError):
    """A process could not be started.

    ``step`` names what failed: ``clone``, ``chdir``, ``setuid``, ``exec``...
    """

    step: str

    def __init__(
        self, path: str | os.PathLike[str], reason: str = "", error_number: int = 0, step: str = "spawn"
    ) -> None:
        super().__init__(path, reason, error_number)
        self.step = step

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, int, str]]:  # type: ignore[override]
        return type(self), (self.path, self.reason, self.errno or 0, self.step)
