"""The story's numbers: whatever the agents hold at the same time, exactly the one intent meant to be refused is refused."""

from agentcgroup.proto.quantity import parse_size
from demo import story
from demo.story import AGENTS, ANALYST, BUILDER, HOST_MEMORY_BYTES, TESTER, Point

BUILDER_MOST = parse_size(story.BUILDER_MOST_MEMORY)
TESTER_MOST = parse_size(story.TESTER_MOST_MEMORY)
TESTS_FIRST = parse_size(story.TESTS_FIRST_MEMORY)
# What the daemon advises to a call that was killed: twice its limit.
BURST = 2 * parse_size(story.LOAD_FIRST_MEMORY_MAX)
RUNTIMES = sum(agent.agent_memory_bytes for agent in AGENTS)


def calls_of(agent: story.Agent) -> int:
    return agent.memory_bytes - agent.agent_memory_bytes


def test_budgets_overcommit_the_host() -> None:
    assert sum(agent.memory_bytes for agent in AGENTS) > HOST_MEMORY_BYTES


def test_the_advice_can_be_granted_whatever_the_others_hold() -> None:
    assert HOST_MEMORY_BYTES - RUNTIMES - BUILDER_MOST - TESTER_MOST >= BURST
    assert calls_of(ANALYST) >= BURST


def test_the_tests_first_intent_is_refused_by_the_host_even_when_the_builder_is_gone() -> None:
    most_free = HOST_MEMORY_BYTES - RUNTIMES + BUILDER.agent_memory_bytes - BURST
    assert most_free < TESTS_FIRST
    # By the host and not by its session.
    assert calls_of(TESTER) > most_free
    assert calls_of(TESTER) >= TESTS_FIRST


def test_everybody_else_fits_beside_the_burst() -> None:
    assert HOST_MEMORY_BYTES - RUNTIMES - BURST >= BUILDER_MOST + TESTER_MOST


def test_what_the_analyst_asks_at_most_is_more_than_its_session_has() -> None:
    assert parse_size(story.LOAD_GREEDY_MEMORY_MAX) > calls_of(ANALYST)


def test_every_point_names_the_agent_that_reaches_it() -> None:
    assert {point.agent for point in Point} <= {agent.name for agent in AGENTS}


def test_exactly_one_agent_is_of_high_priority() -> None:
    assert [agent.name for agent in AGENTS if agent.priority == "high"] == [BUILDER.name]
