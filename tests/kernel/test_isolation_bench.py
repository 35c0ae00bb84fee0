"""The isolation benchmark plays a small recording in two arms, for real: a limit around all, and the daemon."""

import json
from pathlib import Path

import pytest

from agentcgroup.client import recordings
from agentcgroup.client.recordings import Call, Curve, Recording, Session, Source

pytest.importorskip("bench.isolation", reason="the benchmarks are not shared with this guest")

MIB = 1 << 20


def test_two_arms_are_played_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bench import isolation

    agent = Curve(Source.ASSUMED, (0, 400), (8 * MIB, 4 * MIB))
    burst = Curve(Source.ASSUMED, (0, 50), (4 * MIB, 24 * MIB))
    recording = Recording(
        (Session("first", "high", memory=agent), Session("other", "low", memory=agent)),
        (
            Call("c1", "first", 50, 100, "pytest", memory=burst),
            Call("c2", "other", 50, 100, "pytest", memory=burst),
        ),
    )
    path = tmp_path / "small.jsonl"
    with path.open("w") as file:
        recordings.write(recording, file)
    words = ["--here", "--recording", str(path), "--limit", "128M", "--speed", "1", "--repetitions", "1"]
    arms = ["--arm", "no control", "--arm", "agentcgroup --no-bpf"]
    assert isolation.main([*words, *arms, "--out", str(tmp_path)]) == 0
    (scene,) = json.loads((tmp_path / "isolation-small.json").read_text())["scenes"]
    assert [arm["arm"] for arm in scene["arms"]] == ["no control", "agentcgroup --no-bpf"]
    for arm in scene["arms"]:
        assert arm["all_survived"] == 1, arm
        # Two agents of 8 MiB, and at times their calls of 24.
        assert 32 * MIB <= arm["most_held_bytes"]["median"] <= 64 * MIB
        assert [each["completed_us"]["n"] for each in arm["sessions"]] == [1, 1]
    assert "agentcgroup --no-bpf" in capsys.readouterr().out
