"""Repositories made of source distributions, with the real git."""

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from demo.repository import Entry, fast_import, make_bundle, read_sdist

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def sdist(path: Path, files: dict[str, bytes], *, executable: str = "") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"thing-1.0/{name}")
            member.size = len(content)
            member.mode = 0o755 if name == executable else 0o644
            tar.addfile(member, io.BytesIO(content))
        folder = tarfile.TarInfo("thing-1.0/empty")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    return path


def git(*words: str | Path, cwd: Path) -> str:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *words], cwd=cwd, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_a_source_distribution_is_read_without_its_top_folder_and_metadata(tmp_path: Path) -> None:
    archive = sdist(
        tmp_path / "a.tar.gz",
        {"b.py": b"b", "a.sh": b"a", "thing.egg-info/PKG-INFO": b"x", "../escape": b"x"},
        executable="a.sh",
    )

    assert read_sdist(archive) == [Entry("a.sh", True, b"a"), Entry("b.py", False, b"b")]


def test_odd_names_are_quoted_for_git() -> None:
    stream = b"".join(fast_import([("1", [Entry('with "quotes" and \\', False, b"")])]))

    assert b'M 100644 inline "with \\"quotes\\" and \\\\"\n' in stream


@needs_git
def test_a_bundle_has_a_commit_and_a_tag_for_every_version(tmp_path: Path) -> None:
    first = sdist(tmp_path / "1.tar.gz", {"kept": b"1", "dropped": b"1"})
    second = sdist(tmp_path / "2.tar.gz", {"kept": b"2\n", "name with blanks": b"\0\xff"}, executable="kept")

    make_bundle([("1.0", first), ("2.0", second)], tmp_path / "thing.bundle")
    git("clone", "--quiet", tmp_path / "thing.bundle", "clone", cwd=tmp_path)

    clone = tmp_path / "clone"
    assert git("log", "--format=%s", cwd=clone).splitlines() == ["Release 2.0", "Release 1.0"]
    assert git("tag", cwd=clone).splitlines() == ["v1.0", "v2.0"]
    assert sorted(git("ls-files", cwd=clone).splitlines()) == ["kept", "name with blanks"]
    assert (clone / "name with blanks").read_bytes() == b"\0\xff"
    assert os.access(clone / "kept", os.X_OK)


@needs_git
def test_the_same_input_gives_the_same_commits(tmp_path: Path) -> None:
    archive = sdist(tmp_path / "1.tar.gz", {"file": b"1"})
    ids = []
    for name in ("one", "two"):
        make_bundle([("1.0", archive)], tmp_path / f"{name}.bundle")
        ids.append(git("bundle", "list-heads", tmp_path / f"{name}.bundle", cwd=tmp_path))

    assert ids[0] == ids[1] != ""


@needs_git
def test_nothing_but_the_bundle_is_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    make_bundle([("1.0", sdist(tmp_path / "1.tar.gz", {"file": b"1"}))], out / "thing.bundle")

    assert [path.name for path in out.iterdir()] == ["thing.bundle"]
