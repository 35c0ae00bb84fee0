"""Whom an agent runs as, and becoming that user for good: initgroups(3), setresgid(2), setresuid(2), keyctl(2)."""

import ctypes
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agentcgroup.client.errors import Denied, InvalidRequest

# keyctl(2) has no wrapper in libc; its number differs by architecture.
_KEYCTL_NUMBERS: Final = {"x86_64": 250, "aarch64": 219, "riscv64": 219}
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """A user to become. `name` and `home` are empty for a uid that has no account."""

    uid: int
    gid: int
    name: str = ""
    home: str = ""
    shell: str = ""


def _of_account(account: pwd.struct_passwd) -> Identity:
    return Identity(account.pw_uid, account.pw_gid, account.pw_name, account.pw_dir, account.pw_shell)


def _of_uid(uid: int, gid: int | None) -> Identity:
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        if gid is None:
            raise InvalidRequest(
                f"uid {uid} has no account here, so its group is not known",
                "Write --user UID:GID",
                field="user",
            ) from None
        return Identity(uid, gid)
    found = _of_account(account)
    return found if gid is None else Identity(uid, gid, found.name, found.home, found.shell)


def choose(user: str | None, environment: Mapping[str, str], own_uid: int, own_gid: int) -> Identity:
    """Whom to run the agent as: `user` (NAME, UID or UID:GID) when given, whoever called sudo, else who this process is.

    Raises InvalidRequest for an unknown user, Denied when this process may not become it.
    """
    if user is None:
        by_sudo = environment.get("SUDO_UID", ""), environment.get("SUDO_GID", "")
        if own_uid == 0 and all(each.isdigit() for each in by_sudo):
            return _of_uid(int(by_sudo[0]), int(by_sudo[1]))
        return _of_uid(own_uid, own_gid)
    uid_text, colon, gid_text = user.partition(":")
    if uid_text.isdigit() and (gid_text.isdigit() or not colon):
        chosen = _of_uid(int(uid_text), int(gid_text) if colon else None)
    else:
        try:
            chosen = _of_account(pwd.getpwnam(user))
        except (KeyError, ValueError):
            raise InvalidRequest(
                f"there is no user {user!r}", "Write --user NAME, UID or UID:GID", field="user"
            ) from None
    if own_uid not in (0, chosen.uid):
        raise Denied(f"only root can run an agent as another user ({user})", "Use sudo", field="user")
    return chosen


def environment_of(identity: Identity, environment: Mapping[str, str], own_uid: int) -> dict[str, str]:
    """`environment` as `identity` finds it at a login; unchanged when it is this process's user already."""
    changed = dict(environment)
    if identity.uid != own_uid:
        changed |= {"HOME": identity.home or "/"}
        changed |= {key: identity.name or str(identity.uid) for key in ("USER", "LOGNAME")}
        if identity.shell:
            changed["SHELL"] = identity.shell
    return changed


def become(identity: Identity) -> None:
    """Makes this process `identity` for good: no way back, no group and no key of the former user.

    Groups before the user, because only root may change them. Does nothing when it is this user already. Raises OSError.
    """
    if identity.uid == os.getuid() == os.geteuid():
        return
    _leave_keyring()
    if identity.name:
        os.initgroups(identity.name, identity.gid)
    else:
        os.setgroups([identity.gid])
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    if 0 not in (identity.uid, os.getuid()):
        try:
            os.setuid(0)
        except PermissionError:
            return
        raise RuntimeError(f"uid {identity.uid} could become root again")


def _leave_keyring() -> None:
    # A process possesses its session keyring whoever it becomes, and root's may hold keys. Containers deny the call; they
    # have no keyring of root's to lose either.
    call_number = _KEYCTL_NUMBERS.get(os.uname().machine)
    if call_number is not None:
        ctypes.CDLL(None).syscall(
            ctypes.c_long(call_number), _KEYCTL_JOIN_SESSION_KEYRING, ctypes.c_void_p(None)
        )
