"""client/cli/naming.py: what SDK and daemon say of fields, in words of the options; nothing else changes."""

import dataclasses
from typing import Any

import pytest

from agentcgroup.client.cli.naming import BUDGET_OPTIONS, LIMITS_OPTIONS, in_options
from agentcgroup.client.values import Budget
from agentcgroup.daemon.errors import RequestError
from agentcgroup.daemon.model import BudgetRequest, Intent
from agentcgroup.daemon.policy import bounds, intent as intent_rules

FIELDS = ("memory_bytes", "memory_max_bytes", "cpu_milli", "cpu_weight", "pids_max", "deadline_ms")


def test_every_field_of_a_budget_has_an_option() -> None:
    assert {field.name for field in dataclasses.fields(Budget)} <= BUDGET_OPTIONS.keys()


@pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(Budget)])
def test_what_the_daemon_says_of_a_budget_names_its_options(field: str) -> None:
    with pytest.raises(RequestError) as caught:
        bounds.check_budget(BudgetRequest(**{field: -1}))
    for text in (caught.value.cause, caught.value.next_step):
        told = in_options(text, BUDGET_OPTIONS)
        assert told.startswith(f"{BUDGET_OPTIONS[field]} ") and "_" not in told


@pytest.mark.parametrize("field", FIELDS)
def test_what_the_daemon_says_of_limits_names_their_options(field: str) -> None:
    values: dict[str, Any] = {field: 0}
    with pytest.raises(RequestError) as caught:
        intent_rules.check(Intent(**values))
    for text in (caught.value.cause, caught.value.next_step):
        told = in_options(text, LIMITS_OPTIONS)
        assert told.startswith(f"{LIMITS_OPTIONS[field]} ") and "_" not in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "cpu_milli takes 10 (0.01 CPUs) to 2147483647 (2147483.647 CPUs); leave it out for the default",
            "--cpu takes 0.01 CPUs to 2147483.647 CPUs; leave it out for the default",
        ),
        (
            "agent_memory_bytes is a part of memory_max_bytes: make it smaller",
            "--agent-memory is a part of --memory: make it smaller",
        ),
        ("pids_max is 0", "--pids is 0"),
        ("cpu_milli: 'x' is no CPU amount", "--cpu: 'x' is no CPU amount"),
        ("agent_memory: 'x' is no size", "--agent-memory: 'x' is no size"),
        ("there is no session 'pids_max.1'", "there is no session 'pids_max.1'"),
        ("agent: memory_max: 1", "agent: memory_max: 1"),
        ("labels has 17 entries", "--label has 17 entries"),
        ("transparent: 'x' is none of off, agent", "--transparent: 'x' is none of off, agent"),
        ("session s cannot have a transparent door: x", "session s cannot have a transparent door: x"),
        ("process 12 (sh) is gone", "process 12 (sh) is gone"),
        ("the_pids_max of it", "the_pids_max of it"),
    ],
)
def test_fields_become_options_and_values_what_people_write(text: str, told: str) -> None:
    assert in_options(text, BUDGET_OPTIONS) == told


def test_a_command_without_such_options_says_it_as_it_was_said() -> None:
    assert in_options("memory_max_bytes is 1 (1 B)", {}) == "memory_max_bytes is 1 (1 B)"
