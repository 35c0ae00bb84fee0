"""Which execs become tool calls without having asked: an exec, the session's rule and its live jobs in, an outcome out.

Only execs in the agent's own cgroup come here, of processes that are not the agent runtime itself; see
bpf/lifecycle_door.bpf.h. What runs in a call already is in that call, whatever it executes.

What stays where it is counts as part of the agent: what it starts is looked at as if the agent had started it. That is how
a persistent shell, one that reads its commands instead of being given one, yields a call for each of its commands, and
how `exclude` names the helpers of an agent runtime.

A job is what a shell starts by one line: `make 2>&1 | tee log` is two processes and one call. Processes of one parent are
one job when they share a process group that is not the parent's (shells with job control), or when a pipe leads from the
one to the other (shells without). Of `a | b | c` b may come last: while a job of a shell has a pipe with one end, whoever
brings another such pipe belongs to it. Two pipelines begun at the same time without job control may so become one job.
"""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from agentcgroup.daemon.model import Knock
from agentcgroup.proto.transparent import TransparentRule
from agentcgroup.proto.words import TransparentScope

__all__ = ["Job", "Outcome", "Ruling", "decide", "is_persistent_shell"]

# They come through the other door, or are on their way to become what is meant.
_NEVER: Final = frozenset({"agentcg"})
# runc and crun enter a container as themselves, `init` or `exec`, and then execute the user's command.
_RUNTIMES: Final = frozenset({"runc", "crun", "youki", "runsc"})
_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ash", "ksh", "ksh93", "mksh", "fish"})
# Options of these shells whose value is the next argument.
_LONG_WITH_VALUE: Final = frozenset({"--rcfile", "--init-file", "--init-command", "--features", "--profile"})
_SHORT_WITH_VALUE: Final = frozenset("oO")


class Outcome(StrEnum):
    CALL = "call"
    JOINS = "joins"  # becomes part of a job's call
    STAYS = "stays"


@dataclass(frozen=True, slots=True)
class Ruling:
    """`call_id`: of the call that is joined. `reason`: why it stays."""

    outcome: Outcome
    reason: str = ""
    call_id: str = ""


@dataclass(slots=True)
class Job:
    """The processes of a live transparent call that a shell may still add to."""

    call_id: str
    parent_pid: int
    # None: the parent's own, which says nothing.
    process_group: int | None
    # Inodes of the pipes on the processes' standard inputs and outputs.
    inputs: set[int] = field(default_factory=set)
    outputs: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, call_id: str, knock: Knock) -> "Job":
        """The job that begins with `knock`."""
        job = cls(call_id, knock.parent_pid, _own_group(knock))
        job.add(knock)
        return job

    def add(self, knock: Knock) -> None:
        """Another process of the job."""
        self.inputs |= _some(knock.stdin_pipe)
        self.outputs |= _some(knock.stdout_pipe)

    def has(self, knock: Knock) -> bool:
        """Whether the process belongs to this job."""
        if knock.parent_pid != self.parent_pid:
            return False
        if self.process_group is not None or _own_group(knock) is not None:
            return self.process_group == _own_group(knock)
        inputs, outputs = _some(knock.stdin_pipe), _some(knock.stdout_pipe)
        if self.outputs & inputs or self.inputs & outputs:
            return True
        is_open = self.inputs != self.outputs
        return knock.parent_name in _SHELLS and is_open and bool(inputs | outputs)


def decide(knock: Knock, rule: TransparentRule, jobs: Iterable[Job]) -> Ruling:
    """What becomes of the process that has just executed `knock.command`."""
    if rule.scope is TransparentScope.OFF or rule.scope is _other_side(knock):
        return Ruling(Outcome.STAYS, "the session's rule is not about it")
    names = _names(knock)
    if not _NEVER.isdisjoint(names) or _is_container_runtime(names, knock.command):
        return Ruling(Outcome.STAYS, "it brings a call of its own")
    if any(_matches(names, pattern) for pattern in rule.exclude):
        return Ruling(Outcome.STAYS, "the session's rule excludes its name")
    if is_persistent_shell(names, knock.command):
        return Ruling(Outcome.STAYS, "it is a shell that reads its commands: each of them is looked at")
    for job in jobs:
        if job.has(knock):
            return Ruling(Outcome.JOINS, call_id=job.call_id)
    if rule.include and not any(_matches(names, pattern) for pattern in rule.include):
        return Ruling(Outcome.STAYS, "the session's rule does not include its name")
    return Ruling(Outcome.CALL)


def is_persistent_shell(names: Iterable[str], command: Sequence[str]) -> bool:
    """Whether it is a shell that was given neither a command (-c) nor a script, and so reads its standard input."""
    if _SHELLS.isdisjoint(names):
        return False
    arguments = iter(command[1:])
    for argument in arguments:
        if argument in ("-", "--"):
            # The next one, if any, is a script.
            return next(arguments, None) is None
        if argument.startswith("--"):
            if argument in _LONG_WITH_VALUE:
                next(arguments, None)
            elif argument == "--command" or argument.startswith("--command="):
                return False
        elif argument[:1] in ("-", "+") and len(argument) > 1:
            if "c" in argument:
                return False
            if "s" in argument:
                return True
            if not _SHORT_WITH_VALUE.isdisjoint(argument):
                next(arguments, None)
        else:
            return False
    return True


def _other_side(knock: Knock) -> TransparentScope:
    """The scope that leaves this exec out."""
    return TransparentScope.AGENT if knock.is_from_outside else TransparentScope.OUTSIDE


def _names(knock: Knock) -> frozenset[str]:
    """What the program may be called: of the path executed, and of argument 0, where a login shell has a dash."""
    called = knock.command[0] if knock.command else ""
    found = (_last_part(knock.filename), _last_part(called).removeprefix("-"))
    return frozenset(name for name in found if name)


def _last_part(path: str) -> str:
    return path.rpartition("/")[2]


def _is_container_runtime(names: frozenset[str], command: Sequence[str]) -> bool:
    return not _RUNTIMES.isdisjoint(names) and len(command) > 1 and command[1] in ("init", "exec")


def _matches(names: frozenset[str], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _own_group(knock: Knock) -> int | None:
    return knock.process_group if knock.process_group != knock.parent_process_group else None


def _some(inode: int | None) -> set[int]:
    return set() if inode is None else {inode}
