"""What of a host's memory is for sessions."""

import logging

import pytest

from agentcgroup.daemon.config import HostConfig
from agentcgroup.daemon.host.prepare import HostUnfit, memory_capacity

GIB = 1 << 30


def test_sessions_may_use_what_is_configured_else_all_but_the_reserve(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert memory_capacity(HostConfig(memory=GIB), 4 * GIB) == GIB
    assert memory_capacity(HostConfig(memory_reserve=GIB), 4 * GIB) == 3 * GIB
    assert not caplog.records


def test_nobody_is_promised_more_than_the_host_has(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert memory_capacity(HostConfig(memory=1 << 60), 4 * GIB) == 4 * GIB
    assert "host.memory, 1 EiB, is more than this host has: its 4 GiB count" in caplog.text


def test_a_reserve_that_leaves_nothing_is_said_at_the_start() -> None:
    with pytest.raises(HostUnfit, match="memory_reserve, 4 GiB, leaves nothing for sessions of the 4 GiB"):
        memory_capacity(HostConfig(memory_reserve=4 * GIB), 4 * GIB)
