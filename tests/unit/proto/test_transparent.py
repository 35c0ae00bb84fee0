"""The rule of a transparent door as text: read, written, refused."""

import pytest

from agentcgroup.proto.transparent import MOST_PATTERNS, OFF, BadRule, TransparentRule, parse_rule
from agentcgroup.proto.words import TransparentScope


@pytest.mark.parametrize("scope", TransparentScope)
def test_a_scope_alone_is_a_rule(scope: TransparentScope) -> None:
    assert parse_rule(scope) == TransparentRule(scope)


def test_patterns_are_kept_in_order() -> None:
    rule = parse_rule("all, include=py*, exclude=git,exclude=rg*")
    assert rule == TransparentRule(TransparentScope.ALL, ("py*",), ("git", "rg*"))


@pytest.mark.parametrize(
    "text", ["off", "agent", "outside,exclude=a", "all,include=a*,exclude=b,exclude=[cd]?"]
)
def test_a_rule_is_written_as_it_is_read(text: str) -> None:
    assert str(parse_rule(text)) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is none of"),
        ("on", "off, agent, outside, all"),
        ("exclude=git", "is none of"),
        ("all,git", "neither include=PATTERN nor exclude=PATTERN"),
        ("all,", "neither include=PATTERN"),
        ("all,exclude=", "no pattern"),
        ("all,exclude=/usr/bin/git", "last part"),
        ("all,include=a\nb", "no pattern"),
        ("all,exclude=" + "x" * 200, "no pattern"),
        ("off,exclude=git", "off has no patterns"),
        ("all" + ",exclude=a" * (MOST_PATTERNS + 1), f"more than {MOST_PATTERNS}"),
    ],
)
def test_what_is_no_rule_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(BadRule, match=says.replace("+", r"\+")):
        parse_rule(text)


def test_the_default_makes_no_calls() -> None:
    assert OFF.scope is TransparentScope.OFF and parse_rule(str(OFF)) == OFF
