"""The configuration: what no host could do is an error that names the key, at the start and at a reload."""

from pathlib import Path

import pytest

from agentcgroup.daemon.config import Config, ConfigError, load, parse


@pytest.mark.parametrize(
    ("section", "line", "words"),
    [
        ("host", 'memory = "7E"', "host.memory: '7E' is too much: 4 EiB at most"),
        ("host", 'memory = "24"', "host.memory is at least 1M; a number without a unit is bytes"),
        ("host", "pids_max = 99999999999", "host.pids_max is 1 to 4194304"),
        ("host", "calls_max = 9999999999", "host.calls_max is 1 to 1000000"),
        ("host", "oversubscription = nan", "host.oversubscription is 1 to 10"),
        ("host", "cpu = nan", "host.cpu: 'nan' is no CPU amount"),
        ("session", 'memory = "8"\nagent_memory = "0"', "a number without a unit is bytes"),
        ("session", "cpu = 0.001", "at least 0.01 CPUs"),
        ("call", 'memory = "2"', "call.memory are at least 1M"),
        (
            "call",
            'memory = "2G"\nmemory_max = "1G"',
            "call.memory_max, where a call is stopped, is at least",
        ),
        ("call", "pids_max = 99999999999", "call.pids_max is 1 to 4194304"),
        ("call", 'deadline = "99999999d"', "call.deadline: '99999999d' is too much: ten years at most"),
        ("call", 'memroy = "1G"', "did you mean 'memory'?"),
        ("queue", "length = 99999999999", "queue.length is 1 to 1000000"),
        ("suggest", "least_runs = 65", "suggest.least_runs is 1 to 64"),
        ("suggest", "quantile = nan", "suggest.quantile is more than 0"),
        ("bpf", 'ring = "1E"', "bpf.ring is a power of two from 4K to 1G"),
    ],
)
def test_what_cannot_be_is_named(section: str, line: str, words: str) -> None:
    with pytest.raises(ConfigError, match="^a file: ") as caught:
        parse(f"[{section}]\n{line}\n", "a file")
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read_is_told_with_what_to_do(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none", "cannot be read: No such file or directory. Name a file"),
        (tmp_path, "cannot be read: Is a directory. Name a file"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{path}: {words}")
    (tmp_path / "latin").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match="not TOML, which is UTF-8"):
        load(tmp_path / "latin")


def test_the_defaults_pass_their_own_checks() -> None:
    assert parse("") == Config()
