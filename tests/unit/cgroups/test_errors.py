"""What an errno of the kernel becomes, and what its message says."""

import copy
import errno
import os
import pickle

import pytest

from agentcgroup.cgroups.directory import from_os_error
from agentcgroup.cgroups.errors import (
    BadFormat,
    CgroupBusy,
    CgroupError,
    CgroupExists,
    CgroupGone,
    ControllerMissing,
    InterfaceMissing,
    NotCgroup2,
    NotDelegated,
    ProcessGone,
    SpawnFailed,
)

ALL = [
    BadFormat, CgroupBusy, CgroupError, CgroupExists, CgroupGone, ControllerMissing, InterfaceMissing, NotCgroup2,
    NotDelegated, ProcessGone, SpawnFailed,
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, CgroupGone),
        (errno.ENODEV, CgroupGone),
        (errno.EBADF, CgroupGone),
        (errno.EBUSY, CgroupBusy),
        (errno.EACCES, NotDelegated),
        (errno.EPERM, NotDelegated),
        (errno.EROFS, NotDelegated),
        (errno.ESRCH, ProcessGone),
        (errno.EEXIST, CgroupExists),
        (errno.EINVAL, CgroupError),
        (errno.EOPNOTSUPP, CgroupError),
        (errno.ERANGE, CgroupError),
    ],
    ids=lambda one: errno.errorcode[one] if isinstance(one, int) else one.__name__,
)
def test_an_errno_becomes_an_exception_with_path_errno_and_action(
    code: int, kind: type[CgroupError]
) -> None:
    found = from_os_error("/sys/fs/cgroup/x", "write '1' to memory.max", OSError(code, os.strerror(code)))
    assert type(found) is kind
    assert found.path == "/sys/fs/cgroup/x"
    assert found.errno == code
    assert str(found).startswith("/sys/fs/cgroup/x: cannot write '1' to memory.max")
    assert str(found).endswith(f"[{errno.errorcode[code]}]")


def test_a_refusal_names_the_next_step() -> None:
    found = from_os_error("/sys/fs/cgroup/x", "make it", PermissionError(errno.EACCES, "no"))
    assert "Delegate=yes" in str(found)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_exception_is_an_oserror_and_survives_a_copy(kind: type[CgroupError]) -> None:
    original = kind("/path", "the reason", errno.EBUSY)
    assert isinstance(original, OSError)
    for other in (copy.copy(original), pickle.loads(pickle.dumps(original))):
        assert type(other) is kind
        assert (other.path, other.reason, other.errno) == ("/path", "the reason", errno.EBUSY)


def test_a_failed_spawn_keeps_its_step() -> None:
    found = pickle.loads(pickle.dumps(SpawnFailed("/bin/x", "no", errno.ENOENT, "exec")))
    assert found.step == "exec"


def test_an_error_without_an_errno_reads_as_a_sentence() -> None:
    assert str(BadFormat("/path", "cannot be understood")) == "/path: cannot be understood"
    assert (
        str(CgroupError("/path", error_number=errno.EBUSY)) == f"/path: {os.strerror(errno.EBUSY)} [EBUSY]"
    )
