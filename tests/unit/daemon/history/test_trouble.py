"""The history through everything that can happen to its file. Real SQLite throughout."""

import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agentcgroup.daemon.errors import Kind, RequestError
from agentcgroup.daemon.history import DropCause, HistoryStore, file, schema, waiting
from tests.running import wait_until
from tests.unit.daemon.history.entries import NOW_NS, ROOT, Make, entry, ids


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
        import sys; sys.path.insert(0, {os.fspath(ROOT)!r})
        from pathlib import Path; from agentcgroup.daemon.history import HistoryStore
        from tests.running import wait_until
        from tests.unit.daemon.history.entries import entry, ids
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
        wait_until(lambda: store.stats().trouble, what="trouble")
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
    wait_until(lambda: second.stats().waiting == 0, what="a write")
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
    wait_until(lambda: "Another process holds it" in store.stats().trouble, what="the lock being noticed")
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
    wait_until(lambda: store.stats().trouble != "", what="the failure")
    store.close()
    assert ids(make().list()[0]) == ["c1"]


def test_a_fault_of_the_writer_is_seen_and_harms_nobody(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    store.list()

    def burst(self: file.HistoryFile, entries: object) -> None:
        raise AssertionError("a fault of ours")

    monkeypatch.setattr(file.HistoryFile, "write", burst)
    store.record(entry(1))
    wait_until(lambda: "writer broke" in store.stats().trouble, what="the fault")
    store.record(entry(2))
    assert store.close()
    assert store.stats().dropped[DropCause.STOPPED] == 2
