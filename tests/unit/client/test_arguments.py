"""What people write for limits: numbers, texts, timedeltas; and what is none of these."""

from datetime import timedelta
from typing import Any

import pytest

from agentcgroup.client.arguments import BudgetArguments, IntentArguments, budget_of, intent_of, priority_of
from agentcgroup.client.errors import InvalidRequest
from agentcgroup.client.operations import declare
from agentcgroup.client.values import Budget, CpuClass, Intent, OnExceed, Priority


def test_texts_and_numbers_mean_the_same() -> None:
    texts = intent_of(
        IntentArguments(memory="2G", memory_max="3GiB", cpu="1.5", weight=200, cpu_class="batch", pids=64, timeout="10m",
                        expect="90", on_exceed="throttle", throttle_limit="500ms")
    )  # fmt: skip
    numbers = intent_of(
        IntentArguments(memory=2 * 2**30, memory_max=3 * 2**30, cpu=1.5, weight=200, cpu_class=CpuClass.BATCH, pids=64,
                        timeout=600, expect=90.0, on_exceed=OnExceed.THROTTLE, throttle_limit=timedelta(milliseconds=500))
    )  # fmt: skip
    assert texts == numbers
    assert (texts.cpu_milli, texts.deadline_ms, texts.expected_duration_ms) == (1500, 600_000, 90_000)


def test_a_misspelt_limit_is_not_silently_absent() -> None:
    misspelt: Any = {"memroy": "2G"}
    unknown: Any = {"zzzz": 1}
    with pytest.raises(InvalidRequest, match="no argument 'memroy'. Did you mean 'memory'?"):
        intent_of(misspelt)
    with pytest.raises(InvalidRequest, match="There are memory, agent_memory"):
        budget_of(unknown)


def test_nothing_declared_is_nothing_and_zero_is_zero() -> None:
    assert intent_of(IntentArguments()) == Intent()
    assert intent_of(IntentArguments(memory=0)).memory_bytes == 0
    assert budget_of(BudgetArguments(swap=0, cpu="2")) == Budget(swap_max_bytes=0, cpu_milli=2000)
    assert (priority_of(None), priority_of("high")) == (None, Priority.HIGH)


def test_a_command_that_is_no_utf8_is_shown_as_far_as_it_can_be() -> None:
    assert intent_of(IntentArguments(command=["echo", "a\udcffb"])).command == ("echo", "a?b")


@pytest.mark.parametrize(
    "arguments",
    [
        {"memory": "lots"}, {"memory": -1}, {"memory": 1.5}, {"memory": True}, {"memory_max": ""}, {"cpu": "many"},
        {"cpu": -1}, {"cpu": float("nan")}, {"cpu": []}, {"weight": "100"}, {"weight": -1}, {"pids": 1.0},
        {"timeout": "soon"},
        {"timeout": -1}, {"timeout": timedelta(seconds=-1)}, {"cpu_class": "fast"}, {"on_exceed": "cry"},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_limit_is_an_error_that_names_its_field(arguments: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        intent_of(arguments)
    assert caught.value.field == next(iter(arguments))


@pytest.mark.parametrize(
    "intent",
    [Intent(memory_bytes=2**64), Intent(pids_max=2**32), Intent(labels={"key": "\udcff"})],
    ids=["too many bytes", "too many pids", "no UTF-8"],
)
def test_what_no_message_can_carry_is_an_error_before_it_is_sent(intent: Intent) -> None:
    with pytest.raises(InvalidRequest, match="cannot be written"):
        declare(intent, "")
