"""Layers: what their keys depend on, and that they are complete or not there."""

import multiprocessing
import os
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from vm.cache import IN_USE_S, Cache, hash_files, hash_inputs


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_key_depends_on_order_and_on_where_inputs_are_split() -> None:
    keys = {
        hash_inputs(parts) for parts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], [b"ab", b"c", b""])
    }
    assert len(keys) == 5
    assert hash_inputs(["ab", "c"]) == hash_inputs([b"ab", b"c"])


def test_a_key_of_files_sees_content_names_modes_and_links_but_not_times(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", "1"), write(tmp_path / "d/b", "2")
    files = [first, second]
    before = hash_files(tmp_path, files)
    os.utime(first, (1, 1))
    assert hash_files(tmp_path, reversed(files)) == before
    first.chmod(0o755)
    executable = hash_files(tmp_path, files)
    first.write_text("other")
    changed = hash_files(tmp_path, files)
    first.unlink()
    first.symlink_to("d/b")
    linked = hash_files(tmp_path, files)
    moved = hash_files(tmp_path, [first, second.rename(tmp_path / "d/c")])
    assert len({before, executable, changed, linked, moved}) == 5


def test_a_layer_is_built_once(tmp_path: Path) -> None:
    cache, built = Cache(tmp_path), list[Path]()
    places = [cache.layer("kind", "key", built.append) for _ in range(2)]
    assert built == [tmp_path / "kind/key"]
    assert places == built * 2


def test_a_build_that_failed_is_no_layer_and_is_built_anew(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(place: Path) -> None:
        write(place / "half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.layer("kind", "key", fail)
    place = cache.layer("kind", "key", lambda place: None)
    assert not (place / "half").exists()


def test_layers_in_recent_use_stay_and_old_ones_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for key in ("oldest", "older", "recent"):
        place = cache.layer("kind", key, lambda place: None)
        if key != "recent":
            os.utime(place, times=(time.time() - 10 * IN_USE_S,) * 2)
    cache.layer("kind", "new", lambda place: None, keep=1)
    assert {entry.name for entry in (tmp_path / "kind").iterdir()} == {"recent", "new"}


def hold_lock(root: Path, held: Event, release: Event) -> None:
    with Cache(root).lock("name"):
        held.set()
        release.wait(30)


def test_a_lock_excludes_another_process_and_says_that_it_waits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold_lock, args=(tmp_path, held, release))
    other.start()
    try:
        assert held.wait(30)
        waits: list[bool] = []

        def on_wait() -> None:
            waits.append(other.is_alive())
            release.set()

        with Cache(tmp_path).lock("name", on_wait):
            assert waits == [True]
    finally:
        release.set()
        other.join(30)
    assert other.exitcode == 0


def test_cleaning_leaves_what_is_not_ours(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    for kind in ("root", "kernel-7.3"):
        cache.layer(kind, "key", lambda place: None)
    write(cache.path("accelerator.json"), "{}")
    theirs = write(cache.path("photos/one"))
    cache.clean()
    assert [entry.name for entry in cache.root.iterdir()] == ["photos"]
    theirs.unlink()
    theirs.parent.rmdir()
    cache.clean()
    assert not cache.root.exists()


def test_sizes_count_blocks_because_images_are_sparse(tmp_path: Path) -> None:
    def build(place: Path) -> None:
        with (place / "image").open("wb") as file:
            file.truncate(1 << 30)

    cache = Cache(tmp_path)
    cache.layer("root", "key", build)
    assert cache.sizes_bytes()["root/key"] < 1 << 20
