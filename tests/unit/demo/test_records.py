"""Transcripts, meetings and events: what one process writes, another reads."""

import threading
from pathlib import Path

import pytest

from demo import transcript
from demo.meeting import Meeting, NobodyCame
from demo.records import AgentEnd, Finished, Said, Told, Transcript, decode_event, encode_event
from demo.story import Point, StepName
from tests.unit.demo.runs import good_run, step


def test_a_transcript_is_read_as_it_was_written(tmp_path: Path) -> None:
    writer = transcript.Writer(tmp_path / "t.jsonl")
    steps = (step("builder", StepName.BUILD), step("builder", StepName.CHECK, because_of="build"))
    end = AgentEnd("builder", 1, None, 3, 0, {"a": "b"})
    for each in steps:
        writer.step(each)
    writer.end(end)

    assert transcript.read(tmp_path / "t.jsonl") == Transcript(steps, end)


def test_a_transcript_that_was_cut_off_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    transcript.Writer(path).step(step("builder", StepName.BUILD))
    with path.open("ab") as file:
        file.write(b'{"step": {"agent"')

    assert len(transcript.read(path).steps) == 1
    assert transcript.read(path).end is None


def test_no_transcript_is_an_empty_one(tmp_path: Path) -> None:
    assert transcript.read(tmp_path / "none") == Transcript()


@pytest.mark.parametrize(
    "event", [Said(1.5, "text"), Told(2.0, "builder", "ended", "über", "a", "ok"), Finished(good_run())]
)
def test_an_event_survives_its_line(event: Said | Told | Finished) -> None:
    line = encode_event(event)

    assert "\n" not in line
    assert decode_event(line) == event


@pytest.mark.parametrize("line", ["", "plain text", "@event", "@event {", '@event {"type":"unknown"}'])
def test_other_lines_are_no_events(line: str) -> None:
    assert decode_event(line) is None


def test_an_agent_goes_on_when_another_reaches_the_point(tmp_path: Path) -> None:
    waiting, other = Meeting(tmp_path, patience_s=20), Meeting(tmp_path)
    reached = threading.Thread(target=other.reach, args=(Point.TESTER_READY,))
    reached.start()

    waiting.wait(Point.TESTER_READY)
    reached.join()


def test_waiting_ends_at_once_when_the_other_has_left(tmp_path: Path) -> None:
    Meeting(tmp_path).leave("tester")

    with pytest.raises(NobodyCame, match="tester has ended without reaching tester-ready"):
        Meeting(tmp_path).wait(Point.TESTER_READY)


def test_a_point_reached_before_leaving_counts(tmp_path: Path) -> None:
    Meeting(tmp_path).reach(Point.TESTER_READY)
    Meeting(tmp_path).leave("tester")

    Meeting(tmp_path).wait(Point.TESTER_READY)


def test_patience_ends(tmp_path: Path) -> None:
    with pytest.raises(NobodyCame, match="did not reach"):
        Meeting(tmp_path, patience_s=0).wait(Point.TESTER_READY)
