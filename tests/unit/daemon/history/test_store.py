"""The history keeps what ended, in bounds. Real SQLite throughout."""

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from agentcgroup.daemon.config import HistoryConfig, SizeBytes
from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.history import DropCause, open_history, pages
from agentcgroup.daemon.model import (
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
from tests.unit.daemon.history.entries import DAY_NS, NOW_NS, ROOT, Make, entry, ids


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
        import sys; sys.path.insert(0, {os.fspath(ROOT)!r})
        from pathlib import Path; from agentcgroup.daemon.history import HistoryStore
        from tests.unit.daemon.history.entries import entry
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
