"""The rule of a session's transparent door as people write it, and as a value.

    off                             nothing becomes a call without being asked for; the default
    agent                           what the agent starts: each command is a call
    outside                         what enters the session from outside: docker exec, nsenter --join-cgroup
    all                             both
    all,exclude=git,exclude=rg*     but not these: they stay with the agent, what they start is looked at like the agent's
    agent,include=pytest,include=make   only these

Patterns are those of fnmatch(3), matched against the name of the program: the last part of the path that was executed,
or of its argument 0 (busybox is `ls` there). An exclusion goes before an inclusion.
"""

from dataclasses import dataclass
from typing import Final

from agentcgroup.proto.words import TransparentScope

__all__ = ["MOST_PATTERNS", "OFF", "BadRule", "TransparentRule", "parse_rule"]

MOST_PATTERNS: Final = 64
_LONGEST_PATTERN: Final = 128
_INCLUDE: Final = "include="
_EXCLUDE: Final = "exclude="


class BadRule(ValueError):
    """The text is no rule; the message says what would be."""


@dataclass(frozen=True, slots=True)
class TransparentRule:
    """Which execs become calls. No `include`: every name."""

    scope: TransparentScope = TransparentScope.OFF
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __str__(self) -> str:
        """As `parse_rule` reads it."""
        patterns = (*(_INCLUDE + each for each in self.include), *(_EXCLUDE + each for each in self.exclude))
        return ",".join((self.scope, *patterns))


OFF: Final = TransparentRule()


def parse_rule(text: str) -> TransparentRule:
    """Raises BadRule."""
    first, *rest = (part.strip() for part in text.split(","))
    try:
        scope = TransparentScope(first)
    except ValueError:
        raise BadRule(
            f"{first[:40]!r} is none of {', '.join(TransparentScope)}; write for example all,exclude=git"
        ) from None
    include: list[str] = []
    exclude: list[str] = []
    for part in rest:
        patterns, pattern = (
            (include, part.removeprefix(_INCLUDE))
            if part.startswith(_INCLUDE)
            else (exclude, part.removeprefix(_EXCLUDE))
        )
        if pattern == part:
            raise BadRule(f"{part[:40]!r} is neither include=PATTERN nor exclude=PATTERN")
        if not pattern or "/" in pattern or not pattern.isprintable() or len(pattern) > _LONGEST_PATTERN:
            raise BadRule(
                f"{pattern[:40]!r} is no pattern for the name of a program, which is its path's last part"
            )
        patterns.append(pattern)
    if len(include) + len(exclude) > MOST_PATTERNS:
        raise BadRule(f"{len(include) + len(exclude)} patterns are more than {MOST_PATTERNS}")
    if scope is TransparentScope.OFF and rest:
        raise BadRule("off has no patterns; leave them out, or write all")
    return TransparentRule(scope, tuple(include), tuple(exclude))
