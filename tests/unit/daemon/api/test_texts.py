"""api/texts.py: the launcher's text becomes an intent, or a message in words of the options."""

import pytest
from hypothesis import given, strategies as st

from agentcgroup.daemon.api.texts import read_texts
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.model import CpuClass, Intent, OnExceed
from agentcgroup.proto.launch import INTENT_KEYS


def test_every_option_becomes_its_field() -> None:
    texts = {
        "memory": "2G",
        "memory-max": "3G",
        "cpu": "1.5",
        "weight": "200",
        "class": "batch",
        "pids": "200",
        "timeout": "10m",
        "expect": "2m",
        "on-exceed": "throttle",
        "throttle-limit": "30s",
    }
    assert set(texts) == INTENT_KEYS
    assert read_texts(texts, {"b": "2", "a": "1"}, ["pytest", "-q"]) == Intent(
        memory_bytes=2 << 30,
        memory_max_bytes=3 << 30,
        cpu_milli=1500,
        cpu_weight=200,
        cpu_class=CpuClass.BATCH,
        pids_max=200,
        expected_duration_ms=120_000,
        deadline_ms=600_000,
        on_exceed=OnExceed.THROTTLE,
        throttle_limit_ms=30_000,
        command=("pytest", "-q"),
        labels=(("a", "1"), ("b", "2")),
    )


def test_nothing_declared_is_an_empty_intent() -> None:
    assert read_texts({}, {}, []) == Intent()


@pytest.mark.parametrize(
    ("texts", "option", "words"),
    [
        ({"memory": "lots"}, "--memory", "512M or 2G"),
        ({"memory": "0"}, "--memory", "--memory is 0"),
        ({"memory": "-1G"}, "--memory", "no size"),
        ({"memory": "2G", "memory-max": "1G"}, "--memory-max", "less than --memory"),
        ({"memory": "2"}, "--memory", "takes 1 MiB to 4 EiB; a number without a unit is bytes"),
        ({"memory-max": "900K"}, "--memory-max", "takes 1 MiB to 4 EiB; leave it out"),
        ({"cpu": "0.005"}, "--cpu", "--cpu is 0.005. --cpu takes 0.01 CPUs to 2147483.647 CPUs"),
        ({"timeout": "9999d"}, "--timeout", "--timeout is 9999d. --timeout takes 1 ms to 87600 h"),
        ({"cpu": "fast"}, "--cpu", "no CPU amount"),
        ({"weight": "1.5"}, "--weight", "whole number"),
        ({"weight": "10001"}, "--weight", "1 to 10000"),
        ({"pids": "0"}, "--pids", "--pids is 0"),
        ({"pids": "9" * 30}, "--pids", "no number"),
        ({"class": "huge"}, "--class", "interactive, normal, batch"),
        ({"on-exceed": "explode"}, "--on-exceed", "stop, throttle, extend"),
        ({"timeout": "soon"}, "--timeout", "no duration"),
        ({"timeout": "0"}, "--timeout", "--timeout is 0"),
        ({"throttle-limit": "5s", "on-exceed": "stop"}, "--throttle-limit", "--on-exceed is stop"),
    ],
)
def test_a_wrong_value_names_the_option_that_was_typed(
    texts: dict[str, str], option: str, words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        read_texts(texts, {}, [])
    assert caught.value.kind is Kind.INVALID
    assert caught.value.field == option
    assert words in str(caught.value)
    assert "_" not in str(caught.value)


def test_a_wrong_label_names_its_option() -> None:
    with pytest.raises(RequestError) as caught:
        read_texts({}, {"Key": "x"}, [])
    assert caught.value.field == "--label"
    assert "--label has the key 'Key'" in str(caught.value)


@given(st.dictionaries(st.sampled_from(sorted(INTENT_KEYS)), st.text(max_size=12)))
def test_any_text_is_an_intent_or_invalid(texts: dict[str, str]) -> None:
    try:
        read_texts(texts, {}, [])
    except RequestError as error:
        assert error.kind is Kind.INVALID
        assert error.field.startswith("--")
