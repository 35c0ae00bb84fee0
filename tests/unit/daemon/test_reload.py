"""Reloading: what changes at once, what needs a start, and that a wrong file changes nothing."""

import logging

import pytest

from agentcgroup.daemon import config
from agentcgroup.daemon.config import Config, ConfigError
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.reload import LIVE, Reloader, changes, merged

OLD = config.parse('[call]\nmemory = "256M"\n[host]\ncalls_max = 100\nmemory = "4G"\n')
NEW = config.parse('[call]\nmemory = "1G"\n[host]\ncalls_max = 50\nmemory = "8G"\n[bpf]\nenabled = "off"\n')


def test_every_changed_key_is_told_with_whether_it_is_in_force() -> None:
    told = {each.key: (each.old, each.new, each.is_live) for each in changes(OLD, NEW)}
    assert told == {
        "host.memory": (str(4 << 30), str(8 << 30), False),
        "host.calls_max": ("100", "50", True),
        "bpf.enabled": ("auto", "off", False),
        "call.memory": (str(256 << 20), str(1 << 30), True),
    }
    assert "takes effect at the next start" in str(changes(OLD, NEW)[0])


def test_only_live_keys_are_taken_over() -> None:
    now = merged(OLD, NEW)
    assert (now.call.memory, now.host.calls_max) == (1 << 30, 50)
    assert (now.host.memory, now.bpf.enabled) == (4 << 30, "auto")
    assert merged(OLD, OLD) == OLD


def test_live_keys_exist() -> None:
    for name in LIVE:
        section, _, key = name.partition(".")
        assert section in Config.__struct_fields__
        assert not key or key in getattr(Config(), section).__struct_fields__


def test_a_key_that_waits_for_a_start_is_told_at_every_reload() -> None:
    used: list[Config] = []
    reloader = Reloader(OLD, lambda: NEW, lambda config, _: used.append(config))
    assert {each.key for each in reloader.reload()} >= {"host.memory", "call.memory"}
    assert {each.key for each in reloader.reload()} == {"host.memory", "bpf.enabled"}
    assert [each.call.memory for each in used] == [1 << 30, 1 << 30]


def test_a_wrong_file_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    used: list[Config] = []

    def load() -> Config:
        raise ConfigError("agentcgroup.toml: unknown key call.memroy: did you mean 'memory'?")

    reloader = Reloader(OLD, load, lambda config, _: used.append(config))
    with pytest.raises(RequestError) as error:
        reloader.reload()
    assert error.value.kind is Kind.INVALID
    assert "did you mean 'memory'?" in error.value.cause
    assert "stays in force" in error.value.next_step
    with caplog.at_level(logging.ERROR):
        reloader.reload_on_signal()
    assert "did you mean 'memory'?" in caplog.text
    assert used == []
