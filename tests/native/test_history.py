"""What a daemon wrote down and learned is there for the next one: stories, figures, ids that go on."""

import json
import os
import subprocess
from pathlib import Path

from agentcgroup.client.values import Event
from tests.running import LAUNCHER, RunningDaemon, running_daemon

SCRIPT = ("sh", "-c", "exec true")


def agentcg(daemon: RunningDaemon, *words: str) -> str:
    environment = os.environ | {"AGENTCGROUP_OPERATOR_SOCKET": str(daemon.operator_socket)}
    environment.pop("AGENTCGROUP_SESSION_DIR", None)
    done = subprocess.run(
        [str(LAUNCHER), *words], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ran(daemon: RunningDaemon, session: str, times: int) -> None:
    with daemon.operator() as operator:
        operator.create_session(session, memory="1G", labels={"project": "django"})
        for _ in range(times):
            tool = daemon.launch(session, *SCRIPT)
            tool.communicate(timeout=60)
            assert tool.returncode == 0


def events(daemon: RunningDaemon) -> list[Event]:
    with daemon.operator() as operator:
        return list(operator.events(limit=1000))


def test_a_restart_forgets_neither_decisions_nor_figures(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        ran(daemon, "first", 3)
        assert "true ran 3 times in project django" in agentcg(
            daemon, "history", "suggest", "--project", "django", "--", "timeout", "5", "true"
        )
        before = events(daemon)
        calls = sorted({each.call_id for each in before if each.call_id})
        assert len(calls) == 3
        daemon.stop()
        # Where `start` looks for the word that it is ready.
        daemon.log.unlink()
        daemon.start()
        suggestion = json.loads(
            agentcg(daemon, "history", "suggest", "--project", "django", "--json", "--", "true")
        )
        assert (suggestion["command_class"], suggestion["runs"]) == ("true", 3)
        story = agentcg(daemon, "explain", calls[0])
        assert story.startswith(f"Call {calls[0]} of session first, ended: sh -c exec true\n")
        for word in ("granted by policy", "begun by agent", "ended by daemon"):
            assert word in story
        ran(daemon, "second", 1)
        after = events(daemon)
        ids = [each.id for each in after]
        assert ids == sorted(ids, reverse=True) and len(set(ids)) == len(ids)
        assert min(each.id for each in after if each.session == "second") > max(each.id for each in before)


def test_what_ran_can_be_exported_and_played_again_in_the_daemon(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        ran(daemon, "first", 2)
        path = tmp_path / "first.jsonl"
        assert "2 calls of 1 session written" in agentcg(daemon, "history", "export", "-o", str(path))
        (played,) = json.loads(agentcg(daemon, "replay", str(path), "--json"))
        assert (played["session"], played["survived"], played["calls_ended_well"]) == ("first", True, 2)
        replayed = [each for each in events(daemon) if each.session == "replay-first"]
        assert sorted(each.action for each in replayed) == sorted(
            ["opened", *["granted", "begun", "ended"] * 2, "closed"]
        )
        with daemon.operator() as operator:
            assert [each.name for each in operator.sessions()] == ["first"]
