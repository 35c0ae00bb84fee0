"""The history keeps what ended, in bounds, through everything that can happen to a file. Real SQLite throughout."""

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentcgroup.daemon.config import HistoryConfig, SizeBytes
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.history import DropCause, HistoryStore, file, open_history, pages, schema, waiting
from agentcgroup.daemon.model import (
    CallLimits,
    CpuClass,
    Decision,
    ExitStatus,
    HistoryEntry,
    Intent,
    OnExceed,
    Report,
    Usage,
    Verdict,
)

DAY_NS = 86_400 * 10**9
NOW_NS = 1_795_000_000 * 10**9

Make = Callable[..., HistoryStore]


def entry(number: int, session: str = "alpha", **changes: object) -> HistoryEntry:
    report = Report(
        call_id=f"c{number}",
        session=session,
        verdict=Verdict.OK,
        exit_status=ExitStatus(exit_code=0),
        usage=Usage(memory_peak_bytes=number << 20, cpu_usage_us=1000),
        started_at_ns=NOW_NS - 5_000_000,
        ended_at_ns=NOW_NS + number,
        duration_ms=5,
        leftover_processes=0,
        message="ended well",
        advice="",
    )
    return HistoryEntry(
        report=dataclasses.replace(report, **changes),  # type: ignore[arg-type]
        intent=Intent(memory_bytes=1 << 30, command=("pytest", "-q")),
        limits=CallLimits(memory_bytes=1 << 30, memory_max_bytes=2 << 30),
        decision=Decision.GRANTED,
        parent_call_id="",
    )


def ids(entries: list[HistoryEntry]) -> list[str]:
    return [item.report.call_id for item in entries]


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite3"


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    stores: list[HistoryStore] = []

    def build(
        where: Path = path, keep_ms: int = 30 * 86_400_000, size_bytes: int = 64 << 20
    ) -> HistoryStore:
        store = HistoryStore(where, keep_ms=keep_ms, size_bytes=size_bytes, now_ns=lambda: NOW_NS)
        stores.append(store)
        return store

    yield build
    for store in stores:
        assert store.close(), "a store did not close in time"


def test_an_entry_comes_back_whole(make: Make) -> None:
    full = HistoryEntry(
        report=Report(
            call_id="c-1",
            session="alpha",
            verdict=Verdict.MEMORY_LIMIT_CALL,
            exit_status=ExitStatus(signal=9),
            usage=Usage(**{field.name: number for number, field in enumerate(dataclasses.fields(Usage), 1)}),
            started_at_ns=None,
            ended_at_ns=NOW_NS,
            duration_ms=17,
            leftover_processes=3,
            message="pytest reached its 3 GiB: \N{SKULL} 'quoted' \x00 and \n lines",
            advice="declare 5 GiB",
        ),
        intent=Intent(
            memory_bytes=2**64 - 1,
            cpu_class=CpuClass.BATCH,
            on_exceed=OnExceed.EXTEND,
            command=("bash", "-c", "cd x && pytest"),
            labels=(("task", "django-1"), ("team", "")),
        ),
        limits=None,
        decision=Decision.TRIMMED,
        parent_call_id="c-0",
        project="django",
        memory_samples=((1000, 5), (2000, 2**40)),
    )
    store = make()
    store.record(full)
    assert store.list() == ([full], "")


def test_a_list_holds_what_was_recorded_just_before_newest_first(make: Make) -> None:
    store = make()
    for number in range(5):
        store.record(entry(number))
    assert ids(store.list()[0]) == ["c4", "c3", "c2", "c1", "c0"]


def test_pages_neither_shift_nor_repeat_while_calls_end(make: Make) -> None:
    store = make()
    for number in range(25):
        store.record(entry(number))
    seen: list[str] = []
    token = ""
    for page in range(10):
        entries, token = store.list(page_size=10, page_token=token)
        seen += ids(entries)
        store.record(entry(1000 + page))
        if not token:
            break
    assert seen == [f"c{number}" for number in reversed(range(25))]


def test_session_and_verdict_choose_entries(make: Make) -> None:
    store = make()
    store.record(entry(1, "alpha"))
    store.record(entry(2, "beta"))
    store.record(entry(3, "beta", verdict=Verdict.DEADLINE))
    store.record(entry(4, "beta-2", verdict=Verdict.DEADLINE))
    assert ids(store.list("beta")[0]) == ["c3", "c2"]
    assert ids(store.list(verdict=Verdict.DEADLINE)[0]) == ["c4", "c3"]
    assert ids(store.list("beta", Verdict.DEADLINE)[0]) == ["c3"]
    assert store.list("' OR 1=1 --") == ([], "")


@pytest.mark.parametrize(
    "token", ["x", "before-", "before-0", "before--3", "before-9999999999999999999", "before-3 "]
)
def test_a_foreign_page_token_is_an_error_that_says_how_to_go_on(make: Make, token: str) -> None:
    with pytest.raises(RequestError) as caught:
        make().list(page_token=token)
    assert caught.value.kind is Kind.INVALID
    assert caught.value.field == "page_token"
    assert "empty page_token" in caught.value.next_step


def test_a_page_size_out_of_range_is_refused_or_cut(make: Make) -> None:
    store = make()
    for number in range(pages.SIZE_MAX + 1):
        store.record(entry(number))
    with pytest.raises(RequestError) as caught:
        store.list(page_size=-1)
    assert caught.value.field == "page_size"
    assert len(store.list(page_size=0)[0]) == pages.SIZE_DEFAULT
    entries, token = store.list(page_size=10**9)
    assert len(entries) == pages.SIZE_MAX
    assert ids(store.list(page_size=10**9, page_token=token)[0]) == ["c0"]


def test_a_page_of_large_entries_ends_early_and_goes_on(make: Make) -> None:
    store = make()
    command = ("x" * 4096,)
    for number in range(600):
        store.record(dataclasses.replace(entry(number), intent=Intent(command=command)))
    first, token = store.list(page_size=1000)
    assert 100 < len(first) < 600
    second, end = store.list(page_size=1000, page_token=token)
    assert ids(first + second) == [f"c{number}" for number in reversed(range(600))]
    assert end == ""


def test_entries_older_than_kept_are_deleted(make: Make) -> None:
    store = make()
    store.record(entry(1, ended_at_ns=NOW_NS - 31 * DAY_NS))
    store.record(entry(2, ended_at_ns=NOW_NS - 29 * DAY_NS))
    store.close()
    store = make()
    assert ids(store.list()[0]) == ["c2"]
    assert (store.stats().expired, store.stats().entries) == (1, 1)


def test_the_file_stays_within_its_size_and_keeps_the_newest(make: Make, path: Path) -> None:
    store = make(size_bytes=2 << 20)
    for number in range(3000):
        store.record(dataclasses.replace(entry(number), intent=Intent(command=("x" * 2000,))))
        if number % 250 == 0:
            store.list(page_size=1)
    entries, _ = store.list(page_size=1000)
    assert ids(entries)[:2] == ["c2999", "c2998"]
    stats = store.stats()
    assert stats.expired > 1500
    assert stats.expired + (stats.entries or 0) == 3000
    store.close()
    assert path.stat().st_size <= 2 << 20


def test_a_smaller_bound_gives_the_disk_back(make: Make, path: Path) -> None:
    store = make()
    for number in range(1500):
        store.record(dataclasses.replace(entry(number), intent=Intent(command=("x" * 2000,))))
    store.close()
    before = path.stat().st_size
    make(size_bytes=1 << 20).close()
    assert path.stat().st_size <= 1 << 20 < before


def test_a_store_opened_again_has_everything_written_before(make: Make) -> None:
    first = make()
    first.record(entry(1))
    first.close()
    second = make()
    second.record(entry(2))
    assert ids(second.list()[0]) == ["c2", "c1"]
    assert second.stats().entries == 2


def test_a_daemon_killed_hard_loses_nothing_that_was_committed(make: Make, path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_history import HistoryStore, entry, Path
        import os, signal
        store = HistoryStore(Path({os.fspath(path)!r}), keep_ms=10**12, size_bytes=1 << 24)
        for number in range(300): store.record(entry(number))
        assert len(store.list(page_size=1000)[0]) == 300
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(make().list(page_size=1000)[0]) == 300


def test_many_threads_lose_and_double_nothing(make: Make) -> None:
    store = make()

    def work(start: int) -> None:
        for number in range(start, start + 300):
            store.record(entry(number))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 1200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen, token = store.list(page_size=700)
    rest, _ = store.list(page_size=700, page_token=token)
    assert sorted(ids(seen + rest)) == sorted(f"c{number}" for number in range(1200))


def test_only_the_owner_may_read_the_file(make: Make, path: Path) -> None:
    store = make()
    store.record(entry(1))
    store.list()
    for name in path.parent.iterdir():
        assert name.stat().st_mode & 0o077 == 0, name


def test_close_writes_what_is_waiting(make: Make) -> None:
    store = make()
    store.record(entry(1))
    assert store.close()
    store.record(entry(2))
    assert ids(make().list()[0]) == ["c1"]


def test_a_command_line_that_is_no_utf8_is_kept_readable(make: Make) -> None:
    store = make()
    odd = dataclasses.replace(
        entry(1), intent=Intent(command=("cat", b"caf\xe9.txt".decode(errors="surrogateescape")))
    )
    store.record(odd)
    store.record(entry(2))
    entries, _ = store.list()
    assert ids(entries) == ["c2", "c1"]
    assert entries[1].intent.command == ("cat", r"caf\udce9.txt")


def test_an_entry_that_makes_no_row_is_counted_and_spares_the_others(make: Make) -> None:
    store = make()
    store.record(entry(1, duration_ms=2**70))
    store.record(entry(2))
    assert ids(store.list()[0]) == ["c2"]
    assert store.stats().dropped[DropCause.UNWRITABLE] == 1


def test_a_row_from_elsewhere_does_not_hide_the_others(make: Make, path: Path) -> None:
    store = make()
    store.record(entry(1))
    store.record(entry(2))
    store.list()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE calls SET verdict = 'eaten' WHERE call_id = 'c2'")
    assert ids(store.list()[0]) == ["c1"]


# ---- trouble with the file ------------------------------------------------------------------------------


def test_an_impossible_path_leaves_the_daemon_unharmed_and_says_so(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = make(tmp_path / "file" / "history.sqlite3")
    for number in range(waiting.WAITING_MAX + 5):
        store.record(entry(number))
    with pytest.raises(RequestError) as caught:
        store.list()
    assert caught.value.kind is Kind.HOST
    assert "daemon.state_dir" in caught.value.next_step
    stats = store.stats()
    assert not stats.working
    assert "Not a directory" in stats.trouble or "File exists" in stats.trouble
    assert stats.dropped[DropCause.QUEUE_FULL] == 5
    assert (stats.waiting, stats.entries, stats.size_bytes) == (waiting.WAITING_MAX, None, None)
    assert store.close()
    assert store.stats().dropped[DropCause.STOPPED] == waiting.WAITING_MAX


def test_a_directory_without_write_permission_is_trouble_with_a_next_step(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    code = textwrap.dedent(
        """
        import os
        from pathlib import Path
        from agentcgroup.daemon.history import HistoryStore
        if os.getuid() == 0: os.setresuid(65534, 65534, 65534)
        store = HistoryStore(Path("history.sqlite3"), keep_ms=1, size_bytes=1)
        try: store.list()
        except Exception as error: print(error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=locked
    )
    assert "Permission denied" in done.stdout, done.stdout + done.stderr
    assert "Make its directory writable" in done.stdout


def test_a_full_disk_costs_nothing_once_there_is_room_again(tmp_path: Path) -> None:
    # A tmpfs of 4 MiB in a mount namespace of its own: a real ENOSPC, without root.
    code = textwrap.dedent(
        f"""
        import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_history import HistoryStore, Path, entry, ids, wait_until
        disk = Path({os.fspath(tmp_path)!r})
        store = HistoryStore(disk / "history.sqlite3", keep_ms=10**12, size_bytes=1 << 30)
        store.record(entry(0))
        assert ids(store.list()[0]) == ["c0"]
        filler = open(disk / "filler", "wb", buffering=0)
        try:
            while True: filler.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == 28, error
        for number in range(1, 400): store.record(entry(number))
        wait_until(lambda: store.stats().trouble, "trouble")
        stats = store.stats()
        assert "Free space" in stats.trouble, stats
        assert "c0" in ids(store.list()[0])
        filler.truncate(0)
        assert len(store.list(page_size=1000)[0]) == 400
        assert store.stats().working and sum(store.stats().dropped.values()) == 0, store.stats()
        assert store.close()
        print("recovered")
        """
    )
    mount = f'mount -t tmpfs -o size=4m tmpfs {tmp_path} && exec {sys.executable} -c "$CODE"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
    if subprocess.run([*unshare[:-1], "true"], capture_output=True).returncode:
        unshare = ["unshare", "--mount", "sh", "-c", mount]
    if subprocess.run([*unshare[:-1], f"mount -t tmpfs tmpfs {tmp_path}"], capture_output=True).returncode:
        pytest.skip("neither user namespaces nor root here: no disk of our own to fill")
    done = subprocess.run(
        unshare, capture_output=True, text=True, timeout=60, env={**os.environ, "CODE": code}
    )
    assert done.stdout == "recovered\n", done.stderr


@pytest.mark.parametrize("offset", [0, 8192], ids=["header", "pages"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(make: Make, path: Path, offset: int) -> None:
    first = make()
    for number in range(300):
        first.record(entry(number))
    first.close()
    with open(path, "r+b") as damaged:
        damaged.seek(offset)
        damaged.write(b"\xde\xad" * 40_000)
    content = path.read_bytes()
    second = make()
    second.record(entry(1000))
    wait_until(lambda: second.stats().waiting == 0, "a write")
    if not list(path.parent.glob("*.damaged-*")):
        # An append may succeed beside the damage; the reader meets it, says so, and the writer acts.
        with pytest.raises(RequestError) as caught:
            second.list(page_size=1000)
        assert "damaged" in caught.value.cause
        second.record(entry(1001))
    assert ids(second.list()[0])[0] in ("c1000", "c1001")
    (aside,) = (name for name in path.parent.glob("*.damaged-*") if not name.name.endswith(("-wal", "-shm")))
    assert aside.stat().st_size >= len(content)
    assert second.stats().working


def test_only_the_newest_damaged_files_are_kept(path: Path) -> None:
    path.parent.mkdir()
    for number in range(6):
        path.write_text(f"{number}")
        os.utime(schema.set_aside(path, NOW_NS), ns=(number, number))
    kept = sorted(name.read_text() for name in path.parent.iterdir())
    assert kept == ["3", "4", "5"]


def test_a_file_that_another_process_holds_is_written_once_it_lets_go(
    make: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make()
    store.record(entry(1))
    store.list()
    store.close()
    monkeypatch.setattr(schema, "BUSY_TIMEOUT_S", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store = make()
    store.record(entry(2))
    wait_until(lambda: "Another process holds it" in store.stats().trouble, "the lock being noticed")
    assert ids(store.list()[0]) == ["c1"]
    other.execute("ROLLBACK")
    other.close()
    assert ids(store.list()[0]) == ["c2", "c1"]
    assert store.stats().working


def test_a_newer_schema_is_left_alone(make: Make, path: Path) -> None:
    make().close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 6}")
    database.close()
    content = path.read_bytes()
    store = make()
    store.record(entry(1))
    with pytest.raises(RequestError) as caught:
        store.list()
    assert f"schema {len(schema.MIGRATIONS) + 6}" in caught.value.cause
    assert "newer agentcgroupd" in caught.value.next_step
    assert not store.stats().working
    assert path.read_bytes() == content


def test_the_file_of_another_program_is_left_alone(make: Make, path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE books (title)")
    database.close()
    content = path.read_bytes()
    store = make()
    with pytest.raises(RequestError) as caught:
        store.list()
    assert "another program" in caught.value.cause
    assert path.read_bytes() == content


def test_a_file_deleted_under_the_daemon_is_begun_anew(make: Make, path: Path) -> None:
    store = make()
    store.record(entry(1))
    store.list()
    for name in path.parent.iterdir():
        name.unlink()
    store.record(entry(2))
    assert ids(store.list()[0]) == ["c2"]
    assert store.stats().working


def test_an_older_schema_is_brought_up_to_date_with_its_entries(path: Path) -> None:
    old = HistoryStore(path, keep_ms=10**12, size_bytes=1 << 24)
    old.record(entry(1))
    old.close()
    newer = (
        *schema.MIGRATIONS,
        ("ALTER TABLE calls ADD COLUMN note TEXT", "CREATE INDEX notes ON calls (note)"),
    )
    store = HistoryStore(path, keep_ms=10**12, size_bytes=1 << 24, migrations=newer)
    store.record(entry(2))
    assert ids(store.list()[0]) == ["c2", "c1"]
    assert store.close()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(newer),)


def test_a_migration_that_fails_leaves_the_older_schema_whole(make: Make, path: Path) -> None:
    old = make()
    old.record(entry(1))
    old.close()
    broken = (
        *schema.MIGRATIONS,
        ("ALTER TABLE calls ADD COLUMN note TEXT", "CREATE INDEX x ON nowhere (y)"),
    )
    store = HistoryStore(path, keep_ms=10**12, size_bytes=1 << 24, migrations=broken)
    wait_until(lambda: store.stats().trouble != "", "the failure")
    store.close()
    assert ids(make().list()[0]) == ["c1"]


def test_a_fault_of_the_writer_is_seen_and_harms_nobody(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    store.list()

    def burst(self: file.HistoryFile, entries: object) -> None:
        raise AssertionError("a fault of ours")

    monkeypatch.setattr(file.HistoryFile, "write", burst)
    store.record(entry(1))
    wait_until(lambda: "writer broke" in store.stats().trouble, "the fault")
    store.record(entry(2))
    assert store.close()
    assert store.stats().dropped[DropCause.STOPPED] == 2


def test_a_history_that_is_switched_off_says_so_when_asked(tmp_path: Path) -> None:
    history = open_history(HistoryConfig(enabled=False), os.fspath(tmp_path))
    history.record(entry(1))
    with pytest.raises(RequestError) as caught:
        history.list()
    assert "history.enabled = true" in caught.value.next_step
    assert not history.stats().enabled
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_decides_where_the_file_is(tmp_path: Path) -> None:
    history = open_history(
        HistoryConfig(path="h/calls.db", max_size=SizeBytes(1 << 20)), os.fspath(tmp_path)
    )
    history.record(entry(1, ended_at_ns=time.time_ns()))
    assert history.close()
    assert (tmp_path / "h" / "calls.db").stat().st_size > 0
