"""`agentcg run` from request to exec, against a door that speaks proto.launch. The launcher is the sanitizers' build."""

import json
import os
import signal
import subprocess
from pathlib import Path

from agentcgroup.proto.launch import Reply, Request, Status
from tests.unit.client.conftest import Door, RunLauncher
from tests.unit.client.scripted_door import ScriptedDoor

GRANTED = Reply(Status.GRANTED, call_id="c1", environment=(("AGENTCGROUP_CALL_ID", "c1"),))


def test_a_granted_tool_gets_its_environment_and_keeps_the_pid_that_asked(
    door: Door, run: RunLauncher, tmp_path: Path
) -> None:
    with door([GRANTED]) as at:
        done = run(
            "--",
            "sh",
            "-c",
            'echo "$$ $AGENTCGROUP_CALL_ID $AGENTCGROUP_SESSION_DIR $AGENTCGROUP_FEEDBACK"; exit 7',
        )
    assert done.stdout.split() == [str(at.heard[0].pid), "c1", str(tmp_path), f"{tmp_path}/feedback.json"]
    assert (done.returncode, done.stderr) == (7, "")


def test_a_default_stands_aside_for_what_the_caller_has_set(
    door: Door, launcher: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    reply = Reply(Status.GRANTED, "c1", defaults=(("OMP_NUM_THREADS", "2"), ("GOMAXPROCS", "2")))
    with door([reply]):
        done = subprocess.run(
            [
                launcher,
                "run",
                "--session-dir",
                tmp_path,
                "--",
                "sh",
                "-c",
                'echo "$OMP_NUM_THREADS,$GOMAXPROCS"',
            ],
            env=environment | {"GOMAXPROCS": "", "GOMAXPROCS_X": "9"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2,\n", "")


def test_every_option_reaches_the_daemon_as_it_was_written(door: Door, run: RunLauncher) -> None:
    words = {
        "memory": "2G", "memory-max": "3G", "cpu": "1.5", "weight": "200", "class": "batch", "pids": "64", "timeout": "10m",
        "expect": "2m", "on-exceed": "throttle", "throttle-limit": "30s",
    }  # fmt: skip
    spaced = [word for key, value in words.items() for word in (f"--{key}", value)]
    joined = [f"--{key}={value}" for key, value in words.items()]
    labels = ["--label", "tool=bash", "--label=task=a=b"]
    with door([GRANTED]) as at:
        assert run(*spaced, *labels, "--", "true", "-x").returncode == 0
        assert run(*joined, *labels, "true", "-x").returncode == 0
    expected = Request(intent=words, labels={"tool": "bash", "task": "a=b"}, arguments=("true", "-x"))
    assert [each.request for each in at.heard] == [expected, expected]


def test_a_ticket_is_sent_instead_of_an_intent(door: Door, run: RunLauncher) -> None:
    with door([GRANTED]) as at:
        assert run("--ticket", "t0ken", "--", "true").returncode == 0
    assert at.heard[0].request == Request(ticket="t0ken", arguments=("true",))


def test_a_trimmed_tool_runs_and_is_told_what_it_got(door: Door, run: RunLauncher) -> None:
    reply = Reply(
        Status.TRIMMED, "c1", "memory trimmed from 8 GiB to 3 GiB", "use less", ("no swap controller",)
    )
    with door([reply]):
        loud, quiet = run("--", "echo", "ran"), run("--quiet", "--", "echo", "ran")
    assert (loud.returncode, loud.stdout) == (0, "ran\n")
    assert loud.stderr.splitlines() == [
        "agentcg: memory trimmed from 8 GiB to 3 GiB", "agentcg: use less", "agentcg: no swap controller",
    ]  # fmt: skip
    assert (quiet.stdout, quiet.stderr) == ("ran\n", "")


def test_a_refused_tool_does_not_run_and_exits_with_120(
    door: Door, run: RunLauncher, tmp_path: Path
) -> None:
    with door(
        [Reply(Status.REFUSED, message="the session has 1 GiB left", suggestion="declare at most 1 GiB")]
    ):
        done = run("--quiet", "--", "touch", str(tmp_path / "ran"))
    assert done.returncode == 120
    assert done.stderr == "agentcg: the session has 1 GiB left\nagentcg: declare at most 1 GiB\n"
    assert not (tmp_path / "ran").exists()


def test_an_invalid_request_exits_with_2_and_the_daemons_words(door: Door, run: RunLauncher) -> None:
    with door([Reply(Status.INVALID, message="memory: 'lots' is no size")]):
        done = run("--memory", "lots", "--", "true")
    assert (done.returncode, done.stderr) == (2, "agentcg: memory: 'lots' is no size\n")


def test_a_command_that_is_not_there_exits_with_127_and_asks_for_nothing(
    door: Door, run: RunLauncher
) -> None:
    with door([GRANTED]) as at:
        bare, path = run("--", "no-such-tool"), run("--", "/no/such/tool")
        empty = run("--", "")
    assert [each.returncode for each in (bare, path, empty)] == [127, 127, 127]
    assert bare.stderr.startswith("agentcg: no-such-tool: command not found\nagentcg: write its name ")
    assert path.stderr.startswith(
        "agentcg: /no/such/tool: No such file or directory\nagentcg: name a program "
    )
    assert at.heard == []


def test_a_command_that_cannot_be_executed_exits_with_126(
    door: Door, run: RunLauncher, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.write_text("echo no\n")
    plain.chmod(0o644)
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    with door([GRANTED]):
        assert run("--", str(plain)).returncode == 126
        assert run("--", str(tmp_path)).returncode == 126
        # As a shell: the kernel says ENOENT, of the interpreter.
        assert run("--", str(broken)).returncode == 127
        # On PATH a file that may not be executed is passed over, and named when nothing else is found.
        done = run("--", "plain", variables={"PATH": f"{tmp_path}:/usr/bin"})
    assert done.returncode == 126
    assert done.stderr.startswith("agentcg: plain: Permission denied\nagentcg: name a program ")


def test_what_cannot_be_executed_is_json_too(door: Door, run: RunLauncher, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    with door([GRANTED]):
        missing = run("--json", "--", "no-such-tool")
        begun = run("--json", "--", str(broken))
    assert json.loads(missing.stderr) == {
        "decision": "failed", "reason": "command_not_found", "message": "no-such-tool: command not found",
        "suggestion": "write its name as it is found in PATH, or its path; a builtin of a shell needs one: bash -c '...'",
        "call_id": "", "notices": [], "placed": False, "exit_status": 127,
    }  # fmt: skip
    # That the call was granted has been said; it ends with this process.
    granted, failed = map(json.loads, begun.stderr.splitlines())
    assert (granted["decision"], granted["exit_status"]) == ("granted", None)
    assert (failed["decision"], failed["reason"], failed["call_id"], failed["placed"]) == (
        "failed",
        "command_not_found",
        "c1",
        True,
    )
    assert failed["exit_status"] == begun.returncode == 127


def test_a_script_without_an_interpreter_line_is_run_by_sh_as_shells_do(
    door: Door, run: RunLauncher, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$0 $1 $2"\n')
    script.chmod(0o755)
    with door([GRANTED]):
        done = run("--", str(script), "one", "two")
    assert done.stdout == f"{script} one two\n"


def test_a_huge_command_line_is_run_whole_and_told_as_far_as_it_fits(door: Door, run: RunLauncher) -> None:
    arguments = [f"argument-{number}" for number in range(20_000)]
    with door([GRANTED]) as at:
        done = run("--", "sh", "-c", 'echo $#; eval echo "\\${$#}"', "sh", *arguments)
    assert done.stdout.split() == ["20000", "argument-19999"]
    told = at.heard[0].request.arguments
    assert told[4:] == tuple(arguments[: len(told) - 4])
    assert 500 < len(told) < 20_000


def test_one_huge_argument_is_left_out_of_the_request(door: Door, run: RunLauncher) -> None:
    with door([GRANTED]) as at:
        done = run("--", "sh", "-c", "echo ${#1}", "sh", "x" * 100_000)
    assert done.stdout == "100000\n"
    assert at.heard[0].request.arguments == ("sh", "-c", "echo ${#1}", "sh")


def test_labels_that_do_not_fit_are_an_error_and_not_cut(run: RunLauncher) -> None:
    done = run(
        *(word for number in range(200) for word in ("--label", f"k{number}={'v' * 100}")), "--", "true"
    )
    assert done.returncode == 2
    assert "longer than 16 KiB" in done.stderr


def test_arguments_need_not_be_utf8(door: Door, run: RunLauncher) -> None:
    with door([GRANTED]) as at:
        done = run("--", "sh", "-c", 'printf %s "$1" | wc -c', "sh", b"\xff\xfe\x01")
    assert done.stdout.strip() == "3"
    assert os.fsencode(at.heard[0].request.arguments[-1]) == b"\xff\xfe\x01"


def test_the_tool_inherits_no_descriptor_of_the_launcher(door: Door, run: RunLauncher) -> None:
    with door([GRANTED]):
        done = run("--", "sh", "-c", "ls /proc/$$/fd")
    # 0, 1 and 2, and nothing else: the socket is closed by the exec.
    assert done.stdout.split() == ["0", "1", "2"]


def test_standard_input_and_output_are_the_tools_own(door: Door, run: RunLauncher) -> None:
    with door([GRANTED]):
        assert run("--", "cat", input="through the launcher").stdout == "through the launcher"


def test_with_standard_streams_closed_nothing_is_said_into_the_socket(
    door: Door, launcher: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    reply = Reply(Status.TRIMMED, "c1", "trimmed", notices=("a notice",))
    with door([reply]) as at:
        done = subprocess.run(
            [
                "sh",
                "-c",
                'exec "$0" run --session-dir "$1" -- touch "$1/ran" 0<&- 1>&- 2>&-',
                launcher,
                tmp_path,
            ],
            env=environment,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0
    assert (tmp_path / "ran").exists()
    assert len(at.heard) == 1


def test_a_signal_reaches_the_tool_and_its_end_is_the_launchers(
    door: Door, launcher: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    with door([GRANTED]):
        process = subprocess.Popen(
            [launcher, "run", "--session-dir", tmp_path, "--", "sh", "-c", "echo ready; exec sleep 60"],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert process.stdout is not None
        with process, process.stdout:
            assert process.stdout.readline() == b"ready\n"
            process.terminate()
            assert process.wait(60) == -signal.SIGTERM


def test_a_reader_of_stderr_that_went_away_does_not_cost_the_tool(
    door: Door, launcher: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with door([Reply(Status.TRIMMED, "c1", "trimmed")]):
        done = subprocess.run(
            # The tool gets SIGPIPE as it was before: the default, which kills it.
            [
                launcher,
                "run",
                "--session-dir",
                tmp_path,
                "--",
                "sh",
                "-c",
                "echo ran; echo x >&2; echo not reached",
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=writer,
            check=False,
            timeout=60,
        )
    os.close(writer)
    assert done.stdout.startswith(b"ran\n")


def test_the_answer_is_one_json_line_when_asked_for(door: Door, run: RunLauncher) -> None:
    said = 'he said "no"\x1b[31m\n\\ü'
    with door([Reply(Status.TRIMMED, "c1", said, "less", ("one", "two")), ]):  # fmt: skip
        trimmed = run("--json", "--", "true")
    assert json.loads(trimmed.stderr) == {
        "decision": "trimmed", "call_id": "c1", "message": said, "suggestion": "less", "notices": ["one", "two"],
        "reason": "", "placed": True, "exit_status": None,
    }  # fmt: skip
    assert trimmed.stderr.count("\n") == 1


def test_a_refusal_and_a_missing_daemon_are_json_too(door: Door, run: RunLauncher) -> None:
    with door([Reply(Status.REFUSED, message="full", reason="queue_full")]):
        refused = json.loads(run("--json", "--", "true").stderr)
    closed, opened = (
        run("--json", "--answer-timeout", "100ms", "--if-unreachable", each, "--", "true")
        for each in ("refuse", "run")
    )
    assert (refused["decision"], refused["placed"], refused["exit_status"]) == ("refused", False, 120)
    assert refused["reason"] == "queue_full"
    assert (json.loads(closed.stderr)["decision"], json.loads(closed.stderr)["exit_status"]) == (
        "unreachable",
        121,
    )
    assert json.loads(closed.stderr)["reason"] == "unreachable" == json.loads(opened.stderr)["reason"]
    assert json.loads(closed.stderr)["message"].startswith("no answer from the daemon at /")
    assert (json.loads(opened.stderr)["decision"], json.loads(opened.stderr)["exit_status"]) == (
        "unreachable",
        None,
    )


def test_json_stays_json_when_the_daemons_words_are_no_utf8(door: Door, run: RunLauncher) -> None:
    with door([b"agentcgroup-launch/1\0status=refused\0message=\xff\xc3\x28\xed\xa0\x80\xf5 ok\0"]):
        done = run("--json", "--", "true")
    assert json.loads(done.stderr)["message"].endswith(" ok")


def test_words_of_the_daemon_cannot_steer_the_terminal(door: Door, run: RunLauncher) -> None:
    with door([Reply(Status.REFUSED, message="\x1b]0;owned\x07 \x7f plain")]):
        done = run("--", "true")
    assert done.stderr == "agentcg: ?]0;owned? ? plain\n"


def test_a_relative_session_directory_is_absolute_for_the_tool(
    door: Door, launcher: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    with door([GRANTED]):
        done = subprocess.run(
            [launcher, "run", "--session-dir", ".", "--", "printenv", "AGENTCGROUP_SESSION_DIR"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    assert done.stdout == f"{tmp_path}/.\n"


def test_a_session_directory_longer_than_a_socket_name_is_reached(
    launcher: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    deep = tmp_path / ("d" * 200)
    deep.mkdir()
    os.symlink(deep, tmp_path / "short")
    with ScriptedDoor(tmp_path / "short", [GRANTED]) as at:
        done = subprocess.run(
            [launcher, "run", "--session-dir", deep, "--", "true"], env=environment, check=False, timeout=60
        )
    assert done.returncode == 0
    assert len(at.heard) == 1
