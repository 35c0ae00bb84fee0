"""Set-up: what is there with the right content is kept, anything else is made again."""

import hashlib
from pathlib import Path

import pytest

from demo import fetch, pins
from demo.pins import Pin

CONTENT = b"a wheel"
PIN = Pin("some-thing", "1.0", hashlib.sha256(CONTENT).hexdigest())


def test_a_pinned_file_is_found_by_name_and_content(tmp_path: Path) -> None:
    wheel = tmp_path / "some_thing-1.0-py3-none-any.whl"
    wheel.write_bytes(CONTENT)

    assert fetch.find(PIN, tmp_path) == wheel


def test_a_file_with_other_content_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "some_thing-1.0.tar.gz").write_bytes(b"something else")

    assert fetch.find(PIN, tmp_path) is None


def test_a_longer_version_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "some_thing-1.01.tar.gz").write_bytes(CONTENT)

    assert fetch.find(PIN, tmp_path) is None


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "some_thing-1.0.tar.gz").write_bytes(CONTENT)
    said: list[str] = []

    found = fetch.bring([PIN], tmp_path, is_wheel=False, say=said.append)

    assert found == [tmp_path / "some_thing-1.0.tar.gz"]
    assert said == []


def test_a_failed_fetch_says_what_pip_said_and_what_to_do(tmp_path: Path) -> None:
    # No index has a project of this name: pip refuses it before it looks anywhere.
    impossible = Pin("not/a/name", "1.0", "0" * 64)

    with pytest.raises(fetch.SetupFailed, match="(?s)pip could not fetch not/a/name 1.0:.*Next step"):
        fetch.download(impossible, tmp_path, is_wheel=True)
    assert list(tmp_path.iterdir()) == []


def test_a_generated_file_is_made_once_for_the_same_input(tmp_path: Path) -> None:
    made: list[str] = []

    def make(path: Path) -> None:
        path.write_text("made", encoding="ascii")
        made.append(path.name)

    for key in ("one", "one", "two"):
        fetch.make_once(tmp_path / "file", key, make, lambda text: None, "a file")

    assert len(made) == 2
    assert (tmp_path / "file").read_text(encoding="ascii") == "made"


def test_a_half_made_file_does_not_count(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half", encoding="ascii")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fetch.make_once(tmp_path / "file", "one", fail, lambda text: None, "a file")

    assert not (tmp_path / "file").exists()


def test_every_pin_carries_a_whole_hash_and_no_file_is_pinned_twice() -> None:
    everything = (*pins.LIBRARY, *pins.PACKAGE, *pins.WHEELS)

    assert all(len(bytes.fromhex(pin.sha256)) == 32 for pin in everything)
    assert len({pin.sha256 for pin in everything}) == len(everything)
    assert pins.LIBRARY[0].requirement == f"lz4==4.0.2 --hash=sha256:{pins.LIBRARY[0].sha256}"
