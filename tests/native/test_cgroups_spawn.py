"""Starting processes inside cgroups of the running kernel."""

import concurrent.futures
import errno
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import CgroupError, CgroupGone, SpawnFailed
from agentcgroup.cgroups.membership import find_mount
from agentcgroup.cgroups.scratch import scratch_cgroup, why_unavailable
from agentcgroup.cgroups.spawn import Credentials, Spawner, spawn
from tests.running import wait_until

REASON = why_unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
NOBODY = Credentials(65534, 65534)


@pytest.fixture
def cgroup() -> Iterator[Cgroup]:
    with scratch_cgroup() as cgroup:
        yield cgroup


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    with Spawner() as spawner:
        yield spawner


def output_of(cgroup: Cgroup, script: str, spawner: Spawner, **options: object) -> str:
    """What a shell in the cgroup prints; it has to succeed."""
    reader, writer = os.pipe()
    try:
        with spawn(
            cgroup,
            ["sh", "-c", script],
            env=options.pop("env", ENV),  # type: ignore[arg-type]
            stdout=writer,
            spawner=spawner,
            **options,  # type: ignore[arg-type]
        ) as child:
            os.close(writer)
            writer = -1
            with open(reader, encoding="utf-8") as file:
                reader = -1
                text = file.read()
            assert child.wait(30) == 0
        return text
    finally:
        for fd in (reader, writer):
            if fd >= 0:
                os.close(fd)


def test_the_first_instruction_is_in_the_cgroup_already(cgroup: Cgroup, spawner: Spawner) -> None:
    path = cgroup.path.removeprefix(str(find_mount().path))
    assert f"0::{path}\n" in output_of(cgroup, "cat /proc/self/cgroup", spawner)


def test_the_process_is_our_own_child(cgroup: Cgroup, spawner: Spawner) -> None:
    assert output_of(cgroup, "echo $PPID", spawner) == f"{os.getpid()}\n"


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -TERM $$", -signal.SIGTERM)])
def test_the_exit_status_is_that_of_the_program(
    script: str, status: int, cgroup: Cgroup, spawner: Spawner
) -> None:
    with spawn(cgroup, ["sh", "-c", script], env=ENV, spawner=spawner) as child:
        assert child.wait(30) == status


def test_waiting_has_a_deadline_and_a_signal_ends_the_process(cgroup: Cgroup, spawner: Spawner) -> None:
    with spawn(cgroup, ["sleep", "1000"], env=ENV, spawner=spawner) as child:
        assert child.wait(0) is None
        assert cgroup.process_ids() == (child.pid,)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == -signal.SIGTERM
        child.send_signal(signal.SIGTERM)


def test_environment_arguments_and_directory_are_those_given(
    cgroup: Cgroup, spawner: Spawner, tmp_path: os.PathLike[str]
) -> None:
    env = {**ENV, "GREETING": "völlig\nübertrieben"}
    reader, writer = os.pipe()
    argv = ["sh", "-c", 'env; pwd; printf "%s|" "$@"', "name", "", "a b", "ü", "\udcff"]
    with (
        open(reader, "rb") as file,
        spawn(cgroup, argv, env=env, cwd=tmp_path, stdout=writer, spawner=spawner) as child,
    ):
        os.close(writer)
        text = file.read()
        assert child.wait(30) == 0
    assert "GREETING=völlig\nübertrieben\n".encode() in text
    assert b"HOME=" not in text
    assert os.fsencode(f"{os.path.realpath(tmp_path)}\n|a b|ü|") + b"\xff|" in text


def test_the_process_runs_as_the_given_user(cgroup: Cgroup, spawner: Spawner) -> None:
    user = Credentials(65534, 65533, (5, 6))
    text = output_of(
        cgroup, "grep -E '^(Uid|Gid|Groups|CapEff)' /proc/self/status", spawner, user=user, cwd="/"
    )
    lines = dict(line.split(":\t") for line in text.splitlines())
    assert lines["Uid"].split() == ["65534"] * 4
    assert lines["Gid"].split() == ["65533"] * 4
    assert lines["Groups"].split() == ["5", "6"]
    assert int(lines["CapEff"], 16) == 0


def test_umask_and_oom_score_are_set(cgroup: Cgroup, spawner: Spawner) -> None:
    script = "umask; cat /proc/self/oom_score_adj"
    assert (
        output_of(cgroup, script, spawner, umask=0o027, oom_score_adj=345, user=NOBODY, cwd="/")
        == "0027\n345\n"
    )


def test_a_new_session_or_process_group_is_led_by_the_process(cgroup: Cgroup, spawner: Spawner) -> None:
    # Fields 5 and 6 of stat(5) are process group and session.
    script = "echo $$ $(cut -d' ' -f 5,6 /proc/$$/stat)"
    pid, group, session = output_of(cgroup, script, spawner, new_session=True).split()
    assert pid == group == session
    pid, group, session = output_of(cgroup, script, spawner, process_group=0).split()
    assert pid == group != session


def test_nothing_but_stdio_is_passed_on(cgroup: Cgroup, spawner: Spawner) -> None:
    fd = os.open("/", os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        # ls itself opens one more: the directory it lists.
        assert output_of(cgroup, "ls /proc/self/fd", spawner).split() == ["0", "1", "2", "3"]
    finally:
        os.close(fd)


def test_no_signal_is_blocked_or_ignored(cgroup: Cgroup, spawner: Spawner) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        text = output_of(cgroup, "grep -E 'Sig(Blk|Ign)' /proc/self/status", spawner)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    # 32 and 33 are the C library's own; make, for one, leaves them ignored for everything it starts.
    assert [int(line.split()[1], 16) & ~(3 << 31) for line in text.splitlines()] == [0, 0]


def test_standard_input_is_a_descriptor_of_the_caller(cgroup: Cgroup, spawner: Spawner) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"hello\n")
    os.close(writer)
    try:
        assert output_of(cgroup, "cat", spawner, stdin=reader) == "hello\n"
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    ("argv", "options", "step", "code"),
    [
        (["/there/is/no/such/program"], {}, "exec", errno.ENOENT),
        (["no-such-program-in-path"], {}, "exec", errno.ENOENT),
        (["/etc/passwd"], {}, "exec", errno.EACCES),
        (["/"], {}, "exec", errno.EACCES),
        (["true"], {"cwd": "/there/is/no/such/folder"}, "chdir", errno.ENOENT),
        (["true"], {"cwd": "/etc/passwd"}, "chdir", errno.ENOTDIR),
        (["true"], {"oom_score_adj": 5000}, "oom_score_adj", errno.EINVAL),
        (["true"], {"process_group": 1}, "setpgid", errno.EPERM),
        (["true"], {"stdin": 9999}, "stdio", errno.EBADF),
        ([], {}, "arguments", errno.EINVAL),
        ([""], {}, "arguments", errno.EINVAL),
        (["a\0b"], {}, "arguments", errno.EINVAL),
        (["true"], {"env": {"A=B": "c"}}, "arguments", errno.EINVAL),
        (["true", "x" * (1 << 18)], {}, "exec", errno.E2BIG),
    ],
    ids=lambda one: one if isinstance(one, str) else None,
)
def test_what_failed_is_told_with_its_errno_and_leaves_no_process(
    argv: list[str], options: dict[str, object], step: str, code: int, cgroup: Cgroup, spawner: Spawner
) -> None:
    with pytest.raises(SpawnFailed) as caught:
        spawn(cgroup, argv, spawner=spawner, **{"env": ENV, **options})  # type: ignore[arg-type]
    assert (caught.value.step, caught.value.errno) == (step, code)
    assert cgroup.process_ids() == ()
    assert output_of(cgroup, "echo still working", spawner) == "still working\n"


def test_a_folder_closed_to_the_user_is_refused_to_the_user(
    cgroup: Cgroup, spawner: Spawner, tmp_path: os.PathLike[str]
) -> None:
    os.chmod(tmp_path, 0o700)
    with pytest.raises(SpawnFailed) as caught:
        spawn(cgroup, ["true"], env=ENV, cwd=tmp_path, user=NOBODY, spawner=spawner)
    assert (caught.value.step, caught.value.errno) == ("chdir", errno.EACCES)
    assert caught.value.path == os.fspath(tmp_path)


def test_a_removed_or_closed_cgroup_takes_no_process(cgroup: Cgroup, spawner: Spawner) -> None:
    child = cgroup.create_child("one")
    cgroup.open_child("one").remove()
    with pytest.raises(CgroupGone):
        spawn(child, ["true"], env=ENV, spawner=spawner)
    child.close()
    with pytest.raises(CgroupGone):
        spawn(child, ["true"], env=ENV, spawner=spawner)


def test_in_a_frozen_cgroup_the_deadline_ends_the_attempt(cgroup: Cgroup, spawner: Spawner) -> None:
    cgroup.freeze()
    with pytest.raises(SpawnFailed, match="frozen") as caught:
        spawn(cgroup, ["true"], env=ENV, timeout_s=0.1, spawner=spawner)
    assert caught.value.step == "timeout"
    assert cgroup.process_ids() == ()


def test_a_server_that_was_killed_while_idle_is_replaced(cgroup: Cgroup) -> None:
    with Spawner() as spawner:
        for _ in range(2):
            assert output_of(cgroup, "echo x", spawner) == "x\n"
            assert spawner.server_pid is not None
            os.kill(spawner.server_pid, signal.SIGKILL)
            os.waitid(os.P_PID, spawner.server_pid, os.WEXITED | os.WNOWAIT)


def test_closing_the_spawner_ends_its_server_and_spares_its_children(cgroup: Cgroup) -> None:
    spawner = Spawner()
    with spawn(cgroup, ["sleep", "1000"], env=ENV, spawner=spawner) as child:
        server = spawner.server_pid
        spawner.close()
        spawner.close()
        assert not os.path.exists(f"/proc/{server}")
        assert child.wait(0) is None
        child.send_signal(signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL


def test_many_threads_spawn_at_once(cgroup: Cgroup, spawner: Spawner) -> None:
    stop = threading.Event()

    def allocate() -> None:
        # Other threads hold locks of the allocator and the interpreter at any moment.
        while not stop.wait(0.001):
            _ = [bytearray(1000) for _ in range(100)]

    noise = [threading.Thread(target=allocate) for _ in range(2)]
    for thread in noise:
        thread.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            texts = list(pool.map(lambda n: output_of(cgroup, f"echo {n}", spawner), range(40)))
    finally:
        stop.set()
        for thread in noise:
            thread.join()
    assert texts == [f"{number}\n" for number in range(40)]


def test_no_descriptor_is_left_behind(cgroup: Cgroup, spawner: Spawner) -> None:
    def open_descriptors() -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), spawner.server_pid))

    output_of(cgroup, "true", spawner)
    before = open_descriptors()
    for _ in range(5):
        output_of(cgroup, "true", spawner)
        with pytest.raises(CgroupError):
            spawn(cgroup, ["/no/such"], env=ENV, spawner=spawner)
    # The server closes what it was handed after its answer.
    wait_until(lambda: open_descriptors() <= before, what="every descriptor closed")


def test_without_clone3_the_child_places_itself(cgroup: Cgroup) -> None:
    with Spawner(use_clone3=False) as spawner:
        path = cgroup.path.removeprefix(str(find_mount().path))
        assert f"0::{path}\n" in output_of(cgroup, "cat /proc/self/cgroup", spawner)
        assert output_of(cgroup, "echo $PPID", spawner) == f"{os.getpid()}\n"
        with pytest.raises(SpawnFailed) as caught:
            spawn(cgroup, ["/no/such"], env=ENV, spawner=spawner)
        assert caught.value.errno == errno.ENOENT
        child = cgroup.create_child("two")
        cgroup.open_child("two").remove()
        with pytest.raises(SpawnFailed) as gone:
            spawn(child, ["true"], env=ENV, spawner=spawner)
        assert (gone.value.step, gone.value.errno) == ("place", errno.ENOENT)
