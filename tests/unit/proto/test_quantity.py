"""proto/quantity.py: what people write and read."""

import contextlib

import pytest
from hypothesis import given, strategies as st

from agentcgroup.proto.quantity import (
    BadQuantity,
    format_cpu,
    format_duration,
    format_size,
    parse_cpu,
    parse_duration,
    parse_size,
)

PARSERS = (parse_size, parse_cpu, parse_duration)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512M", 512 << 20),
        ("2g", 2 << 30),
        ("2GiB", 2 << 30),
        ("2 GB", 2 << 30),
        ("1.5G", 3 << 29),
        (" 1K ", 1024),
        ("7E", 7 << 60),
    ],
)
def test_a_size_is_binary_whatever_its_unit_is_called(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "milli"), [("1.5", 1500), ("1500m", 1500), ("2", 2000), ("0.01", 10)])
def test_cpu_is_cores_or_thousandths(text: str, milli: int) -> None:
    assert parse_cpu(text) == milli


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("90", 90_000),
        ("500ms", 500),
        ("10m", 600_000),
        ("1h30m", 5_400_000),
        ("1.5s", 1500),
        ("2d", 172_800_000),
    ],
)
def test_a_duration_is_seconds_or_has_units(text: str, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1e3", "nan", "inf", "0x10", "1,5", "1.2.3", "٣", "1 2", "ten", "9" * 21]
)
def test_text_that_is_no_quantity_is_refused_with_an_example(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(BadQuantity, match="for example"):
        parse(text)


@pytest.mark.parametrize(
    ("parse", "text"), [(parse_size, "8E"), (parse_cpu, "9999999999"), (parse_duration, "9" * 20 + "d")]
)
def test_a_quantity_beyond_what_a_field_carries_is_refused(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(BadQuantity):
        parse(text)


def test_minutes_are_not_guessed_after_hours() -> None:
    with pytest.raises(BadQuantity):
        parse_duration("1h30")


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "text", ["9" * 5000, "1" * 5000 + "!", "1h" * 5000 + "!", "1." * 5000, " " * 5000 + "x"]
)
@pytest.mark.timeout(10)
def test_a_hostile_text_is_refused_at_once(parse: object, text: str) -> None:
    # The pattern of durations once took twice as long for every further digit.
    assert callable(parse)
    with pytest.raises(BadQuantity) as caught:
        parse(text)
    assert len(str(caught.value)) < 200


@given(st.text(max_size=40))
def test_any_text_is_a_quantity_in_range_or_a_bad_quantity(text: str) -> None:
    for parse, most in ((parse_size, 2**63), (parse_cpu, 2**31), (parse_duration, 2**63)):
        with contextlib.suppress(BadQuantity):
            assert 0 <= parse(text) <= most


@given(st.integers(0, 2**63 - 1))
def test_a_plain_number_of_bytes_is_read_exactly(size: int) -> None:
    assert parse_size(str(size)) == size


def test_quantities_are_shown_with_three_digits_and_a_unit() -> None:
    assert [format_size(size) for size in (0, 900, 1536, 312 << 20, 3 << 29)] == [
        "0 B",
        "900 B",
        "1.5 KiB",
        "312 MiB",
        "1.5 GiB",
    ]
    assert [format_cpu(milli) for milli in (500, 1000, 1500)] == ["0.5 CPUs", "1 CPU", "1.5 CPUs"]
    assert [format_duration(ms) for ms in (340, 12_300, 60_000, 245_000, 7_800_000)] == [
        "340 ms",
        "12.3 s",
        "1 min",
        "4 min 5 s",
        "2 h 10 min",
    ]
