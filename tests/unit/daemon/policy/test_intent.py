"""policy/intent.py and policy/bounds.py: what makes sense by itself."""

import pytest
from hypothesis import given, strategies as st

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import BudgetRequest, Intent, OnExceed
from agentcgroup.daemon.policy.bounds import check_budget, check_labels, check_name, one_line
from agentcgroup.daemon.policy.intent import MOST_ARGUMENTS, MOST_COMMAND_BYTES, bounded_command, check


def test_an_intent_that_declares_nothing_makes_sense() -> None:
    check(Intent())


def test_an_intent_at_every_edge_of_its_ranges_makes_sense() -> None:
    check(Intent(1 << 20, 1 << 20, 10, 1, None, 1, 1, 1, OnExceed.THROTTLE, 1, ("true",), (("a", "b"),)))
    check(Intent(1 << 62, 1 << 62, 2**31 - 1, 10_000, None, 4_194_304, deadline_ms=3650 * 86_400_000))


@pytest.mark.parametrize(
    ("intent", "field"),
    [
        (Intent(memory_bytes=0), "memory_bytes"),
        (Intent(memory_bytes=-1), "memory_bytes"),
        (Intent(memory_bytes=(1 << 62) + 1), "memory_bytes"),
        (Intent(memory_max_bytes=0), "memory_max_bytes"),
        (Intent(memory_bytes=(1 << 20) - 1), "memory_bytes"),
        (Intent(memory_bytes=2 << 20, memory_max_bytes=1 << 20), "memory_max_bytes"),
        (Intent(cpu_milli=9), "cpu_milli"),
        (Intent(cpu_milli=2**31), "cpu_milli"),
        (Intent(cpu_weight=0), "cpu_weight"),
        (Intent(cpu_weight=10_001), "cpu_weight"),
        (Intent(pids_max=0), "pids_max"),
        (Intent(pids_max=4_194_305), "pids_max"),
        (Intent(expected_duration_ms=0), "expected_duration_ms"),
        (Intent(deadline_ms=0), "deadline_ms"),
        (Intent(deadline_ms=2**63), "deadline_ms"),
        (Intent(throttle_limit_ms=0), "throttle_limit_ms"),
        (Intent(throttle_limit_ms=5, on_exceed=OnExceed.STOP), "throttle_limit_ms"),
        (Intent(labels=(("A", "b"),)), "labels"),
    ],
)
def test_a_senseless_intent_is_invalid_and_names_the_field(intent: Intent, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        check(intent)
    assert caught.value.kind is Kind.INVALID
    assert caught.value.field == field
    assert caught.value.cause.startswith(field)
    assert caught.value.next_step


@pytest.mark.parametrize("name", ["a", "0", "web-1", "a.b_c-d", "x" * 63])
def test_a_session_name_of_the_allowed_characters_passes(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/etc", "A", "ä", "-a", "_a", "x" * 64, "x" * 300, "a\n", "a\0"]
    + ["daemon", "memory.max", "cgroup.x"],
)
def test_a_session_name_that_could_not_be_a_cgroup_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_name(name)
    assert caught.value.kind is Kind.INVALID
    assert caught.value.field == "name"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "labels",
    [
        (("", "x"),),
        (("Key", "x"),),
        (("k" * 64, "x"),),
        (("k", "x" * 257),),
        (("k", "é" * 129),),
        (("k", "\x1b[31m"),),
        (("k", "\udc80"),),
        tuple((f"k{number}", "") for number in range(17)),
    ],
)
def test_labels_that_break_a_rule_are_refused(labels: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(RequestError) as caught:
        check_labels(labels)
    assert caught.value.field == "labels"


def test_sixteen_labels_with_the_longest_values_pass() -> None:
    check_labels(tuple((f"k{number:062}", "x" * 256) for number in range(16)))


@pytest.mark.parametrize(
    ("budget", "field"),
    [
        (BudgetRequest(memory_max_bytes=0), "memory_max_bytes"),
        (BudgetRequest(memory_max_bytes=1 << 20, agent_memory_bytes=1 << 20), "agent_memory_bytes"),
        (BudgetRequest(swap_max_bytes=-1), "swap_max_bytes"),
        (BudgetRequest(cpu_milli=0), "cpu_milli"),
        (BudgetRequest(cpu_weight=20_000), "cpu_weight"),
        (BudgetRequest(pids_max=0), "pids_max"),
        (BudgetRequest(calls_max=0), "calls_max"),
    ],
)
def test_a_senseless_budget_names_the_field(budget: BudgetRequest, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_budget(budget)
    assert (caught.value.kind, caught.value.field) == (Kind.INVALID, field)


def test_a_budget_without_swap_and_without_an_agent_reserve_passes() -> None:
    check_budget(BudgetRequest(memory_max_bytes=1 << 30, agent_memory_bytes=0, swap_max_bytes=0))


# Any text, with the surrogates that stand for bytes of an argv that is no UTF-8.
_ARGUMENTS = st.lists(st.text(st.characters(exclude_categories=())), max_size=80)


@given(_ARGUMENTS)
def test_a_kept_command_is_bounded_valid_text_and_begins_as_the_command_did(arguments: list[str]) -> None:
    kept = bounded_command(arguments)
    assert len(kept) <= MOST_ARGUMENTS
    assert sum(len(argument.encode()) for argument in kept) <= MOST_COMMAND_BYTES
    for index, argument in enumerate(kept):
        if arguments[index].isascii():
            assert arguments[index].startswith(argument)


def test_a_long_argument_is_cut_between_characters() -> None:
    assert bounded_command(["echo", "é" * 4000]) == ("echo", "é" * 2046)


def test_a_reason_becomes_one_printable_line_of_bounded_length() -> None:
    assert one_line("stop\nit\x1b[2J") == "stop it [2J"
    assert len(one_line("x" * 10_000)) == 500
