"""What the job is about: three agents, their budgets, the host's, and the names of the steps that expectations speak of.

The numbers hang together (tests/unit/demo/test_story.py adds them up). Whatever the three hold at the same time, nobody is
refused but the one call that is meant to be: while the analyst holds its burst, what is left of the host is never enough for
TESTS_FIRST_MEMORY and always enough for TESTER_MOST_MEMORY and BUILDER_MOST_MEMORY together.
"""

from enum import StrEnum
from typing import Final

import msgspec

MIB: Final = 1024 * 1024


class Agent(msgspec.Struct, frozen=True):
    """One agent: its session's budget and priority, sizes in bytes."""

    name: str
    priority: str
    memory_bytes: int
    agent_memory_bytes: int
    task: str


# What all sessions together may use: less than the three budgets add up to, and less than their peaks do.
HOST_MEMORY_BYTES: Final = 688 * MIB

BUILDER: Final = Agent("builder", "high", 432 * MIB, 48 * MIB, "builds and checks the C library lz4")
TESTER: Final = Agent("tester", "normal", 384 * MIB, 48 * MIB, "runs the test suite of humanize")
ANALYST: Final = Agent("analyst", "low", 560 * MIB, 48 * MIB, "sums up a file of measurements")
AGENTS: Final = (BUILDER, TESTER, ANALYST)

# The most that any call of the builder or of the tester reserves.
BUILDER_MOST_MEMORY: Final = "96M"
TESTER_MOST_MEMORY: Final = "64M"
# What the tester asks for its tests at first: more than is free while the analyst holds its burst.
TESTS_FIRST_MEMORY: Final = "320M"
# Where the analyst's first attempt is stopped. The daemon advises twice that, which is enough.
LOAD_FIRST_MEMORY_MAX: Final = "192M"
# What the analyst asks as its maximum then: more than its session has, so it is trimmed.
LOAD_GREEDY_MEMORY_MAX: Final = "4G"


class Point(StrEnum):
    """Where agents wait for each other, so that what must coincide does; begins with the name of who reaches it."""

    BUILDER_CHECKED = "builder-checked"
    TESTER_READY = "tester-ready"
    ANALYST_RESERVED = "analyst-reserved"
    TESTER_REFUSED = "tester-refused"

    @property
    def agent(self) -> str:
        """Who reaches it."""
        return self.partition("-")[0]


class StepName(StrEnum):
    """Every tool call of the story."""

    # builder
    CLONE_LIBRARY = "clone-library"
    COMPARE = "compare"
    BUILD = "build"
    CHECK = "check"
    REVIEW = "review"
    COMMIT = "commit"
    RELEASE = "build-release"
    COLLECT = "collect-garbage"
    # tester
    CLONE_PACKAGE = "clone-package"
    INSTALL = "install"
    SERVE = "serve-docs"
    TESTS_REFUSED = "tests-too-large"
    TESTS = "tests"
    WAIT = "wait-for-server"
    LOOK = "look-once"
    # analyst
    FORK_WITHOUT_END = "fork-without-end"
    FORK_FEW = "fork-few"
    LOAD_TOO_LITTLE = "load-all-too-little"
    LOAD = "load-all"
    STREAM = "stream"
