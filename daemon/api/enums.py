"""The closed sets of the model and their numbers on the wire, both ways, by name.

`CpuClass.BATCH` is `CPU_CLASS_BATCH`: the tables are built from the names when this module is loaded, so
that a member without a number cannot go unnoticed. Number 0 (UNSPECIFIED) is None; a number that this
release does not know is INVALID.
"""

from enum import StrEnum
from typing import Final, Generic, Protocol, TypeVar

from agentcgroup.daemon import model
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.proto.v1 import types_pb2

Member = TypeVar("Member", bound=StrEnum)
Number = TypeVar("Number", bound=int, covariant=True)


class _Wrapper(Protocol[Number]):
    """What this module needs of a generated enum."""

    def Value(self, name: str, /) -> Number: ...


class Table(Generic[Member, Number]):
    """One enum both ways."""

    def __init__(self, members: type[Member], wrapper: _Wrapper[Number], prefix: str) -> None:
        self._numbers: dict[Member, Number] = {
            each: wrapper.Value(f"{prefix}_{each.name}") for each in members
        }
        self._unspecified = wrapper.Value(f"{prefix}_UNSPECIFIED")
        self._members: dict[int, Member] = {number: each for each, number in self._numbers.items()}

    def number(self, member: Member | None) -> Number:
        """The number of `member` on the wire; None is UNSPECIFIED."""
        return self._unspecified if member is None else self._numbers[member]

    def member(self, number: int, field: str) -> Member | None:
        """The member with `number`; UNSPECIFIED is None. Raises RequestError(INVALID) naming `field`."""
        if number == self._unspecified:
            return None
        member = self._members.get(number)
        if member is None:
            known = ", ".join(f"{each} = {value}" for value, each in sorted(self._members.items()))
            raise RequestError(
                Kind.INVALID,
                f"{field} has the number {number}, which has no meaning",
                f"known: {known}",
                field,
            )
        return member


CPU_CLASSES: Final = Table(model.CpuClass, types_pb2.CpuClass, "CPU_CLASS")
ON_EXCEED: Final = Table(model.OnExceed, types_pb2.OnExceed, "ON_EXCEED")
PRIORITIES: Final = Table(model.Priority, types_pb2.Priority, "PRIORITY")
DECISIONS: Final = Table(model.Decision, types_pb2.Decision, "DECISION")
REASONS: Final = Table(model.Reason, types_pb2.Reason, "REASON")
CALL_STATES: Final = Table(model.CallState, types_pb2.CallState, "CALL_STATE")
TRANSPARENT_SCOPES: Final = Table(model.TransparentScope, types_pb2.TransparentScope, "TRANSPARENT_SCOPE")
SESSION_STATES: Final = Table(model.SessionState, types_pb2.SessionState, "SESSION_STATE")
VERDICTS: Final = Table(model.Verdict, types_pb2.Verdict, "VERDICT")
LEVELS: Final = Table(model.Level, types_pb2.Level, "LEVEL")
RUNGS: Final = Table(model.Rung, types_pb2.Rung, "RUNG")
FEEDBACK_KINDS: Final = Table(model.FeedbackKind, types_pb2.FeedbackKind, "FEEDBACK_KIND")
