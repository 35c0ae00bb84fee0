"""One held directory of the cgroup2 filesystem: the only place that opens, reads and writes files.

The directory is held by descriptor, because a cgroup of the same name may be removed and made anew; every
file is opened relative to it (openat(2)). How the kernel answers on a removed cgroup was tried on 6.18:
opening a file there gives ENOENT, reading a file opened before gives ENODEV, but fstat and xattrs still
succeed; so whether a missing file means "this kernel has no such file" or "this cgroup is gone" is decided
by looking for cgroup.procs, which every cgroup has.
"""

import contextlib
import ctypes
import errno
import os
from typing import Final, Self

from agentcgroup.cgroups.errors import (
    CgroupBusy,
    CgroupError,
    CgroupExists,
    CgroupGone,
    NotCgroup2,
    NotDelegated,
    ProcessGone,
)

CGROUP2_SUPER_MAGIC: Final = 0x63677270  # include/uapi/linux/magic.h: "cgrp"

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_READ: Final = os.O_RDONLY | os.O_CLOEXEC
_WRITE: Final = os.O_WRONLY | os.O_CLOEXEC
_READ_SIZE: Final = 4096
# seq_file hands out a page at a time and stops early only when the next record does not fit, so a read that
# fills less than half a page has reached the end. This spares the second read(2) of nearly every file.
_SURELY_LAST: Final = 2048

_libc = ctypes.CDLL(None, use_errno=True)


def filesystem_magic(fd: int) -> int:
    """``f_type`` of fstatfs(2) for an open descriptor."""
    # struct statfs starts with f_type, a long on the 64-bit ABIs; 256 bytes hold the whole of it on all of
    # them.
    buffer = (ctypes.c_long * 32)()
    if _libc.fstatfs(fd, ctypes.byref(buffer)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer[0]


def from_os_error(path: str, action: str, error: OSError) -> CgroupError:
    """The exception of this package for an errno that the kernel gave for ``action`` on ``path``."""
    code = error.errno or 0
    text = os.strerror(code)
    match code:
        case errno.ENODEV | errno.ENOENT | errno.EBADF:
            return CgroupGone(path, f"cannot {action}: the cgroup was removed or its handle closed", code)
        case errno.EBUSY:
            return CgroupBusy(path, f"cannot {action}: {text}", code)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return NotDelegated(
                path,
                f"cannot {action}: {text}; this cgroup is not delegated to uid {os.geteuid()}"
                " (run as root, or give the unit Delegate=yes)",
                code,
            )
        case errno.ESRCH:
            return ProcessGone(path, f"cannot {action}: no such process is visible here", code)
        case errno.EEXIST:
            return CgroupExists(path, f"cannot {action}: it exists already", code)
        case _:
            return CgroupError(path, f"cannot {action}: {text}", code)


class Directory:
    """A cgroup's directory, held open until :meth:`close`.

    ``path`` is where it was opened, for messages; ``id`` is the inode number, which on cgroup2 is the
    kernel's cgroup id (the value of bpf_get_current_cgroup_id) and is never reused.
    """

    __slots__ = ("_fd", "_write_flags", "id", "path")

    def __init__(self, fd: int, path: str, *, is_cgroup2: bool = True) -> None:
        """Take over the open directory descriptor ``fd``."""
        self._fd = fd
        self.path = path
        self.id = os.fstat(fd).st_ino
        # A cgroup file replaces its content on every write; a plain file, which tests use, has to be told
        # to.
        self._write_flags = _WRITE if is_cgroup2 else _WRITE | os.O_TRUNC

    @classmethod
    def open(cls, path: str, *, verify: bool = True) -> Self:
        """Open an existing directory; ``verify=False`` is the door for tests on a plain directory.

        Raises :class:`CgroupGone` when there is none and :class:`NotCgroup2` when it is on another
        filesystem.
        """
        path = os.path.realpath(path)
        try:
            fd = os.open(path, _OPEN_DIRECTORY)
        except NotADirectoryError as error:
            raise NotCgroup2(path, "is not a directory", error.errno or 0) from error
        except FileNotFoundError as error:
            raise CgroupGone(path, "there is no such cgroup", error.errno or 0) from error
        except OSError as error:
            raise from_os_error(path, "open the cgroup", error) from error
        if verify and (magic := filesystem_magic(fd)) != CGROUP2_SUPER_MAGIC:
            os.close(fd)
            raise NotCgroup2(
                path, f"is not on a cgroup2 filesystem (magic {magic:#x}); see /proc/self/mountinfo"
            )
        return cls(fd, path, is_cgroup2=verify)

    def fileno(self) -> int:
        """The directory descriptor, close-on-exec; -1 when closed."""
        return self._fd

    def close(self) -> None:
        """Let go of the descriptor.

        May be called twice; everything else raises :class:`CgroupGone` from then on.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # A dropped handle must not leak its descriptor; the attribute is absent when __init__ failed.
        if getattr(self, "_fd", -1) >= 0:
            with contextlib.suppress(OSError):
                self.close()

    def _held(self) -> int:
        # For the calls of os that take a descriptor instead of a path: to them -1 is "no descriptor", and
        # scandir() would list the working directory. openat() and its like answer EBADF by themselves.
        if self._fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._fd

    def is_alive(self) -> bool:
        """Whether the cgroup still exists and the handle is open."""
        try:
            os.stat("cgroup.procs", dir_fd=self._fd)
        except OSError:
            return False
        return True

    # ---- files --------------------------------------------------------------------------------------------

    def read(self, name: str) -> str | None:
        """The text of an interface file; None when this kernel or configuration does not have it."""
        try:
            fd = os.open(name, _READ, dir_fd=self._fd)
        except OSError as error:
            self._absent(name, error)
            return None
        try:
            chunk = os.read(fd, _READ_SIZE)
            if len(chunk) >= _SURELY_LAST:
                chunks = [chunk]
                while chunk := os.read(fd, _READ_SIZE):
                    chunks.append(chunk)
                chunk = b"".join(chunks)
        except OSError as error:
            # EOPNOTSUPP: the file is there, but the kernel was booted without what it reports (psi=0).
            if error.errno == errno.EOPNOTSUPP:
                return None
            raise from_os_error(self.path, f"read {name}", error) from error
        finally:
            os.close(fd)
        return chunk.decode("utf-8", "surrogateescape")

    def write(self, name: str, text: str, flags: int = 0) -> bool:
        """Write an interface file in one write(2).

        False when it does not exist. ``flags`` are added to open(2)'s.
        """
        try:
            fd = os.open(name, self._write_flags | flags, dir_fd=self._fd)
        except OSError as error:
            self._absent(name, error)
            return False
        try:
            os.write(fd, text.encode())
        except OSError as error:
            raise from_os_error(self.path, f"write {text!r} to {name}", error) from error
        finally:
            os.close(fd)
        return True

    def open_file(self, name: str, flags: int) -> int:
        """A descriptor of an interface file, for those who poll it. Close-on-exec; the caller closes it."""
        try:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._fd)
        except OSError as error:
            raise from_os_error(f"{self.path}/{name}", "open the file", error) from error

    def has_file(self, name: str) -> bool:
        """Whether the interface file exists."""
        try:
            os.stat(name, dir_fd=self._fd)
        except OSError as error:
            self._absent(name, error)
            return False
        return True

    def _absent(self, name: str, error: OSError) -> None:
        # Decides what a failed open means: None for a file that is not there, an exception for all else.
        if error.errno != errno.ENOENT or not self.is_alive():
            raise from_os_error(self.path, f"open {name}", error) from error

    # ---- directories --------------------------------------------------------------------------------------

    def make_child(self, name: str) -> Self:
        """Make a child cgroup and hold it."""
        try:
            os.mkdir(name, 0o755, dir_fd=self._fd)
        except OSError as error:
            path = f"{self.path}/{name}"
            if error.errno == errno.EAGAIN:
                reason = (
                    "cannot make it: cgroup.max.descendants or cgroup.max.depth of an ancestor is reached"
                )
                raise CgroupError(path, reason, error.errno) from error
            if error.errno == errno.ENOENT:
                raise CgroupGone(
                    self.path, f"cannot make {name!r} in it: the cgroup was removed", errno.ENOENT
                ) from error
            raise from_os_error(path, "make it", error) from error
        return self.open_child(name)

    def open_child(self, name: str) -> Self:
        """Hold an existing child cgroup."""
        path = f"{self.path}/{name}"
        try:
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=self._fd)
        except OSError as error:
            raise from_os_error(path, "open it", error) from error
        return self._hold(fd, path)

    def _hold(self, fd: int, path: str) -> Self:
        # Where a test double adds what its children need to know.
        return type(self)(fd, path, is_cgroup2=self._write_flags == _WRITE)

    def child_names(self) -> list[str]:
        """The names of the child cgroups, in no order; empty when the cgroup is gone."""
        try:
            with os.scandir(self._held()) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            raise from_os_error(self.path, "list its children", error) from error

    def remove(self) -> bool:
        """rmdir(2) this very cgroup and close the handle; False when it was gone already.

        Raises :class:`CgroupBusy` while it has live processes or children.
        """
        # "../name" is resolved from the held directory, so no other path can be meant; comparing the inode
        # spares a cgroup that was made anew under our name.
        name = f"../{self.path.rpartition('/')[2]}"
        try:
            is_ours = os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_ino == self.id
            if is_ours:
                os.rmdir(name, dir_fd=self._fd)
        except FileNotFoundError:
            is_ours = False
        except OSError as error:
            if error.errno == errno.EBUSY:
                reason = (
                    "cannot remove it: it has live processes or child cgroups; kill it or remove_tree() it"
                )
                raise CgroupBusy(self.path, reason, errno.EBUSY) from error
            raise from_os_error(self.path, "remove it", error) from error
        self.close()
        return is_ours

    # ---- extended attributes ------------------------------------------------------------------------------

    def get_xattr(self, name: str) -> bytes | None:
        """An extended attribute such as ``user.x``; None when it is not set. See xattr(7)."""
        try:
            return os.getxattr(self._held(), name)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return None
            raise from_os_error(self.path, f"read attribute {name}", error) from error

    def set_xattr(self, name: str, value: bytes) -> None:
        """Set an extended attribute.

        ``trusted.*`` takes CAP_SYS_ADMIN, ``user.*`` is limited to 128 a cgroup.
        """
        try:
            os.setxattr(self._held(), name, value)
        except OSError as error:
            raise from_os_error(self.path, f"set attribute {name}", error) from error

    def list_xattrs(self) -> list[str]:
        """The names of the extended attributes this process may see."""
        try:
            return os.listxattr(self._held())
        except OSError as error:
            raise from_os_error(self.path, "list its attributes", error) from error
