"""Recordings: written as they are read, wrong ones told by line and field, and played with real memory."""

import io
import json
import os
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from agentcgroup.client import exporting, recordings, replaying
from agentcgroup.client.errors import InvalidRequest
from agentcgroup.client.recordings import Call, Curve, Recording, Session, Source
from agentcgroup.client.replaying import Pace, PlayedCall, PlayedSession, Step, percentile, script_of
from agentcgroup.client.values import HistoryEntry, Intent, Limits, MemorySample, Report, Usage, Verdict
from agentcgroup.proto.v1 import operator_pb2 as operator, types_pb2 as pb
from tests.unit.client.conftest import Cli
from tests.unit.client.scripted_daemon import ScriptedDaemon

MIB = 1 << 20
HEAD = json.dumps({"format": recordings.FORMAT})
SESSION_LINE = json.dumps({"type": "session", "session": "s"})

_times = st.floats(0, 1e6).map(lambda value: round(value, 3))
_curves = st.lists(st.tuples(_times, st.integers(0, 1 << 40)), max_size=5).map(
    lambda points: Curve(Source.SAMPLED, *zip(*sorted(points), strict=True)) if points else Curve()
)
_names = st.text(min_size=1, max_size=8)


@st.composite
def _recordings(draw: st.DrawFn) -> Recording:
    names = draw(st.lists(_names, min_size=1, max_size=3, unique=True))
    sessions = tuple(
        Session(name, draw(st.sampled_from(["low", "high"])), draw(_names), draw(_curves)) for name in names
    )
    calls = [
        Call(
            call=draw(_names), session=draw(st.sampled_from(names)), start_ms=draw(_times), duration_ms=draw(_times),
            command_class="pytest", verdict="ok", memory=draw(_curves),
            memory_peak_bytes=draw(st.none() | st.integers(0, 99)),
            cpu_usage_us=None, intent={"memory_bytes": 5, "cpu_class": "batch"},
        )
        for _ in range(draw(st.integers(0, 4)))
    ]  # fmt: skip
    return Recording(
        sessions, tuple(sorted(calls, key=lambda call: call.start_ms)), draw(st.text(max_size=5))
    )


@settings(deadline=None)
@given(_recordings())
def test_what_was_written_is_read_again(recording: Recording) -> None:
    file = io.StringIO()
    recordings.write(recording, file)
    assert recordings.parse(file.getvalue()) == recording


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{}"], "line 1: format None is no text"),
        (['{"format": "x/9"}'], "no recording of format agentcgroup-recording/1"),
        (["[]"], "line 1: not a JSON object"),
        (["nonsense"], "line 1: not JSON"),
        ([HEAD], "has no session"),
        ([HEAD, '{"type": "session"}'], "line 2: session None is no text"),
        ([HEAD, SESSION_LINE, SESSION_LINE], "line 3: session 's' is there twice"),
        ([HEAD, SESSION_LINE, '{"type":"call","call":"c","session":"t","start_ms":0,"duration_ms":0}'], "no session of"),
        ([HEAD, SESSION_LINE, '{"type":"call","call":"c","session":"s","start_ms":-1,"duration_ms":0}'], "start_ms -1"),
        ([HEAD, SESSION_LINE, '{"type":"call","call":"c","session":"s","start_ms":true}'], "start_ms True"),
        ([HEAD, '{"type":"session","session":"s","memory":{"source":"guessed"}}'], "source 'guessed' is none of"),
        (
            [HEAD, '{"type":"session","session":"s","memory":{"source":"sampled","offset_ms":[1],"bytes":[]}}'],
            "memory: bytes [] has 0 entries for 1 offsets",
        ),
        (
            [HEAD, '{"type":"session","session":"s","memory":{"source":"sampled","offset_ms":[2,1],"bytes":[1,1]}}'],
            "does not rise",
        ),
    ],
)  # fmt: skip
def test_a_wrong_recording_is_told_by_line_and_field(lines: list[str], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        recordings.parse("\n".join(lines), "file")
    assert words in caught.value.cause


def test_records_of_a_later_version_are_left_out() -> None:
    assert recordings.parse(f'{HEAD}\n{SESSION_LINE}\n{{"type": "weather"}}\n').calls == ()


def test_a_session_that_is_not_there_cannot_be_chosen() -> None:
    recording = Recording((Session("a"), Session("b")), (Call("c", "a", 0, 1), Call("d", "b", 0, 1)))
    assert recording.only(["b"]) == Recording((Session("b"),), (Call("d", "b", 0, 1),))
    with pytest.raises(InvalidRequest, match="no session 'x'"):
        recording.only(["x"])


# ---- playing

RECORDING = Recording(
    (Session("big", "high", memory=Curve(Source.ASSUMED, (0, 200), (8 * MIB, 4 * MIB))), Session("small")),
    (
        Call("c 1", "big", 20, 30, "pytest", memory=Curve(Source.SAMPLED, (0, 20), (MIB, 6 * MIB)),
             intent={"memory_bytes": 8 * MIB, "cpu_class": "batch", "deadline_ms": 5}),
        Call("c2", "big", 30, 10, memory_peak_bytes=2 * MIB),
        Call("c3", "small", 0, 5, memory_peak_bytes=None),
    ),
)  # fmt: skip


def test_a_script_has_the_pace_and_what_was_declared() -> None:
    lines = script_of(
        RECORDING, RECORDING.sessions[0], Pace(speed=10, scale=0.5, step_bytes=65536)
    ).splitlines()
    assert lines[:5] == ["pages 4096", "step 65536", "agent", f"point 0 {4 * MIB}", f"point 20000 {2 * MIB}"]
    at = lines.index("call 0:c1 2000 3000")
    assert lines[at + 1 : at + 7] == [
        "option --memory", f"option {4 * MIB}", "option --class", "option batch", "option --label",
        "option project=replay: pytest",
    ]  # fmt: skip
    assert lines[at + 7 : at + 10] == [
        f"point 0 {MIB // 2}", f"point 2000 {3 * MIB}", f"point 3000 {3 * MIB}",
    ]  # fmt: skip
    assert lines[-1] == f"point 1000 {MIB}"


class Here:
    """A stage without cgroups."""

    def __init__(self) -> None:
        self.placed: list[str] = []

    def launcher(self, session: Session) -> list[str]:
        return []

    def place(self, session: Session, pid: int) -> None:
        self.placed.append(session.session)


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch, launcher: Path) -> Path:
    """The launcher with the sanitizers plays the agents."""
    monkeypatch.setattr("agentcgroup.client.places.launcher", lambda: str(launcher))
    return launcher


def test_a_recording_is_played_with_the_memory_that_it_says(actor: Path) -> None:
    stage = Here()
    big, small = replaying.play(RECORDING, stage, Pace())
    assert stage.placed == ["big", "small"]
    assert big.survived and small.survived
    assert [
        (call.call, call.status, call.tries) for call in sorted(big.calls, key=lambda call: call.call)
    ] == [
        ("0:c1", 0, 1),
        ("1:c2", 0, 1),
    ]
    # In steps of 1 MiB: the agent's 8, six of the first call, two of the second.
    assert len(big.step_us) == 8 + 6 + 2 + 3
    assert max(held for _, held in big.held()) in (14 * MIB, 16 * MIB)
    assert big.held()[-1][1] == 4 * MIB
    assert [step.held_bytes for step in big.steps if step.took_us is None] == [4 * MIB]
    assert (small.step_us, small.agent_status) == ([], 0)


def test_a_call_that_is_refused_is_asked_for_again_and_one_that_dies_shows(
    actor: Path, tmp_path: Path
) -> None:
    script, results, count = tmp_path / "script", tmp_path / "results", tmp_path / "count"
    # Plays `agentcg run`: refuses four times, then runs what stands behind --, and kills the second call.
    fake = tmp_path / "run"
    fake.write_text(
        f'#!/bin/sh\necho "$1 $2" >> {count}\n[ $(wc -l < {count}) -lt 5 ] && exit 120\n'
        'while [ "$1" != -- ]; do shift; done; shift\ncase "$*" in *second) kill -9 $$;; esac\nexec "$@"\n'
    )
    fake.chmod(0o755)
    script.write_text(
        "step 4096\ncall first 0 1000\noption --memory\npoint 0 8192\ncall second 2000 1000\noption --label\noption a=b\n"
    )
    words = [str(actor), "act", str(script), str(results), "0", "--", str(fake), "run"]
    assert subprocess.run(words, timeout=60).returncode == 0
    lines = [line.split() for line in results.read_text().splitlines()]
    ends = {line[1]: line[4:] for line in lines if line[0] == "call"}
    assert ends == {"first": ["0", "5"], "second": ["137", "1"]}
    # What is refused again and again is declared no more.
    assert count.read_text().splitlines()[:5] == ["run --memory"] * 3 + ["run --"] * 2
    assert [line[4] for line in lines if line[0] == "step"] == ["4096", "8192"]


@pytest.mark.parametrize(
    "line", ["step x", "step 1", "pages 100", "point 1", "point a b", "call x 1", "nonsense", "option --x"]
)
def test_a_line_that_is_none_of_a_script_ends_it_before_anything_is_played(
    actor: Path, tmp_path: Path, line: str
) -> None:
    script = tmp_path / "script"
    script.write_text(f"{line}\n")
    done = subprocess.run(
        [actor, "act", script, tmp_path / "r", "0"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "not a line of a script" in done.stderr


def test_an_agent_that_dies_has_not_completed_and_a_call_that_dies_has_not_survived() -> None:
    played = PlayedSession("s", "low", 2, completed_us=5, agent_status=0)
    played.calls = [PlayedCall("a", 0, 1, 0, 1), PlayedCall("b", 0, 1, 137, 1)]
    assert not played.survived
    played.calls[1] = PlayedCall("b", 0, 1, 3, 1)
    assert not played.survived
    played.calls[1] = PlayedCall("b", 0, 1, 0, 9)
    assert played.survived
    # One that its own limit stopped when it was recorded may be stopped by it again.
    played.calls[1] = PlayedCall("b", 0, 1, 137, 1)
    played.stopped_when_recorded = ("b",)
    assert played.survived
    played.completed_us = None
    assert not played.survived


def test_memory_of_agent_and_calls_adds_up_until_each_call_ends() -> None:
    played = PlayedSession("s", "low", 1)
    played.steps = [Step("agent", 1, 1, 10), Step("c", 2, 1, 5), Step("agent", 4, None, 3)]
    played.calls = [PlayedCall("c", 1, 3, 0, 1)]
    assert played.held() == [(1, 10), (2, 15), (3, 10), (4, 3)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1))
def test_a_percentile_is_a_value_that_enough_do_not_exceed(values: list[int]) -> None:
    for share in (0.01, 0.5, 0.95, 1.0):
        found = percentile(values, share)
        assert found in values
        assert sum(value <= found for value in values) >= share * len(values) - 1e-9


# ---- exporting


def test_an_export_has_what_the_history_knows_and_no_command_line() -> None:
    began = datetime(2026, 11, 21, tzinfo=UTC)

    def entry(call_id: str, after_ms: int, peak: int | None) -> HistoryEntry:
        report = Report(
            call_id, "web", Verdict.OK, usage=Usage(memory_peak_bytes=peak, cpu_usage_us=7),
            started_at=began + timedelta(milliseconds=after_ms), duration_ms=100,
        )  # fmt: skip
        intent = Intent(memory_bytes=5, command=("secret", "--password=x"), labels={"a": "b"})
        return HistoryEntry(report, intent, Limits(), None, command_class="secret", project="django")

    made = exporting.recording_of([entry("c2", 250, None), entry("c1", 0, 10 * MIB)], {"web": "high"})
    assert made.sessions == (Session("web", "high", "django"),)
    first, second = made.calls_of("web")
    assert (first.call, first.start_ms, first.memory.source, first.memory.peak_bytes) == (
        "c1",
        0,
        "peak",
        10 * MIB,
    )
    assert (second.start_ms, second.memory, second.cpu_usage_us) == (250, Curve(), 7)
    file = io.StringIO()
    recordings.write(made, file)
    assert "password" not in file.getvalue() and first.intent == {"memory_bytes": 5}


def test_what_a_nested_call_took_is_not_played_twice() -> None:
    def entry(call_id: str, parent: str) -> HistoryEntry:
        usage = Usage(memory_peak_bytes=8 * MIB)
        report = Report(
            call_id, "web", Verdict.OK, usage=usage, started_at=datetime.now(UTC), duration_ms=99
        )
        return HistoryEntry(report, Intent(), Limits(), None, parent_call_id=parent)

    entries = [entry("inner", "middle"), entry("middle", "outer"), entry("outer", ""), entry("left", "gone")]
    made = exporting.recording_of(entries, {})
    # Of a parent that is not there nothing is in the recording, so its child stands for itself.
    assert [each.call for each in made.calls] == ["outer", "left"]


def test_samples_of_the_history_become_a_curve_that_reaches_the_kernels_peak() -> None:
    usage = Usage(memory_peak_bytes=9 * MIB)
    report = Report("c1", "web", Verdict.OK, usage=usage, started_at=datetime.now(UTC), duration_ms=99)
    samples = (MemorySample(1000, MIB), MemorySample(2000, 5 * MIB), MemorySample(3000, 2 * MIB))
    made = exporting.recording_of(
        [HistoryEntry(report, Intent(), Limits(), None, memory_samples=samples)], {}
    )
    assert made.calls[0].memory == Curve(Source.SAMPLED, (1000, 2000, 3000), (MIB, 9 * MIB, 2 * MIB))


def test_the_command_exports_to_a_file_and_replays_it(
    cli: Cli, outside: ScriptedDaemon, tmp_path: Path, actor: Path
) -> None:
    report = pb.Report(call_id="c1", session="web", verdict=pb.VERDICT_OK, duration_ms=20)
    report.started_at.FromMilliseconds(1_800_000_000_000)
    report.usage.memory_peak_bytes = 2 * MIB
    outside.answers["ListHistory"] = operator.ListHistoryResponse(
        entries=[operator.HistoryEntry(report=report)]
    )
    outside.answers["ListEvents"] = operator.ListEventsResponse(
        events=[pb.Event(id="e1", action="opened", words={"priority": "low"})]
    )
    path = tmp_path / "web.jsonl"
    status, output, errors = cli("history", "export", "-o", str(path))
    assert (status, output, errors) == (0, f"1 call of 1 session written to {path}.\n", "")
    assert recordings.read(path).sessions == (Session("web", "low"),)
    bare = tmp_path / "bare"
    bare.mkdir()
    status, output, _ = cli(
        "replay", str(path), "--bare", str(bare), "--json", "--json-file", str(tmp_path / "all.json")
    )
    (told,) = json.loads(output)
    assert (status, told["survived"], told["calls_ended_well"], told["peak_bytes"]) == (0, True, 1, 2 * MIB)
    assert (bare / "web" / "cgroup.procs").read_text().strip().isdigit()
    assert len(json.loads((tmp_path / "all.json").read_text())[0]["steps"]) == told["steps"] > 0


def test_an_agent_that_ends_before_its_start_does_not_take_the_replay_with_it(actor: Path) -> None:
    class Killing(Here):
        def place(self, session: Session, pid: int) -> None:
            if session.session == "big":
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # As in the command.
    try:
        big, small = replaying.play(RECORDING, Killing(), Pace())
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert (big.survived, big.agent_status) == (False, 128 + signal.SIGKILL)
    assert small.survived


def test_the_daemons_sessions_are_made_for_a_replay_and_removed_after_it(
    cli: Cli, outside: ScriptedDaemon, tmp_path: Path, actor: Path
) -> None:
    def created(request: operator.CreateSessionRequest) -> operator.CreateSessionResponse:
        session = pb.Session(name=request.name, state=pb.SESSION_STATE_OPEN, socket_dir=str(tmp_path))
        return operator.CreateSessionResponse(session=session)

    outside.answers |= {
        "GetHost": operator.GetHostResponse(memory_capacity_bytes=2**30),
        "CreateSession": created,
        "PlaceAgent": operator.PlaceAgentResponse(session=pb.Session(state=pb.SESSION_STATE_OPEN)),
        "RemoveSession": operator.RemoveSessionResponse(),
    }
    path = tmp_path / "r.jsonl"
    session = Session("A b", "high", memory=Curve(Source.ASSUMED, (0,), (MIB,)))
    with path.open("w") as file:
        recordings.write(Recording((session,), ()), file)
    assert cli("replay", str(path))[0] == 0
    (request,) = outside.requests("CreateSession")
    assert (request.name, request.priority, request.budget.memory_max_bytes) == (
        "replay-a-b",
        pb.PRIORITY_HIGH,
        2**30,
    )
    assert MIB < request.budget.agent_memory_bytes < 64 * MIB
    assert [each.name for each in outside.requests("RemoveSession")] == ["replay-a-b"]
