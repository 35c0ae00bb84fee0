"""Disk images, made and read back by the real programs."""

import os
import shutil
from pathlib import Path

import pytest

from vm import disk, outdir
from vm.outcome import SetupError


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
    for program in ("mke2fs", "e2fsck", "debugfs"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; vm/run installs it")


def image_of(directory: Path, **files: str) -> Path:
    """Make an image of a directory with these files (``__`` for a slash)."""
    tree = directory / "written"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    for name, text in files.items():
        path = tree / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    disk.make_image(directory / "out.img", tree, directory / "log")
    return directory / "out.img"


def test_what_was_written_comes_back_and_unites_with_what_is_there(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "deep/out"
    assert outdir.collect(image_of(tmp_path, a="1", d__b="2", d__c="3"), out, log) == 2
    (out / "d/mine").write_text("kept")
    assert outdir.collect(image_of(tmp_path, a="new", d__b="new", e="5"), out, log) == 3
    found = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}
    assert found == {"a": "new", "d/b": "new", "d/c": "3", "d/mine": "kept", "e": "5"}


def test_an_empty_disk_brings_nothing_and_makes_no_directory(tmp_path: Path) -> None:
    outdir.make(tmp_path / "out.img", tmp_path / "log")
    assert (tmp_path / "out.img").stat().st_blocks * 512 < 64 * disk.MIB
    assert outdir.collect(tmp_path / "out.img", tmp_path / "out", tmp_path / "log") == 0
    assert not (tmp_path / "out").exists()


def test_a_file_does_not_replace_a_directory(tmp_path: Path) -> None:
    (tmp_path / "out/a").mkdir(parents=True)
    with pytest.raises(SetupError, match=r"out/a is a directory.*Next step"):
        outdir.collect(image_of(tmp_path, a="file"), tmp_path / "out", tmp_path / "log")


def test_a_disk_that_is_none_is_an_error_with_the_programs_words(tmp_path: Path) -> None:
    (tmp_path / "out.img").write_bytes(bytes(disk.MIB))
    with pytest.raises(SetupError, match="e2fsck"):
        outdir.collect(tmp_path / "out.img", tmp_path / "out", tmp_path / "log")


def test_thousands_of_tiny_files_fit_into_the_image_made_for_them(tmp_path: Path) -> None:
    tree = tmp_path / "many"
    tree.mkdir()
    for number in range(5000):
        (tree / str(number)).write_text("x")
    disk.make_image(tmp_path / "image", tree, tmp_path / "log")
    assert outdir.collect(tmp_path / "image", tmp_path / "out", tmp_path / "log") == 5000
