"""Git repositories made of source distributions: one commit a version, the same commit ids everywhere.

A repository is written with git-fast-import(1) and handed on as a bundle (git-bundle(1)): one file, which any user can clone
whoever owns it.
"""

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

BRANCH = "refs/heads/main"
AUTHOR = "Set-up of make run <setup@localhost>"
# Commits are an hour apart; the dates mean nothing but order.
FIRST_COMMIT_AT = 1_700_000_000
COMMIT_STEP_S = 3600


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a version, with its path in the repository."""

    path: str
    is_executable: bool
    content: bytes


def read_sdist(archive: Path) -> list[Entry]:
    """The regular files of a source distribution, without its top folder and generated metadata, sorted by path."""
    entries = []
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]
            if not member.isfile() or not parts or ".." in parts or parts[0].endswith(".egg-info"):
                continue
            file = tar.extractfile(member)
            if file is not None:
                entries.append(Entry("/".join(parts), bool(member.mode & 0o100), file.read()))
    return sorted(entries, key=lambda entry: entry.path)


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)


def fast_import(versions: Iterable[tuple[str, Sequence[Entry]]]) -> Iterator[bytes]:
    """The stream for git fast-import: for each (version, files) a commit that replaces all, and a tag."""
    for number, (version, entries) in enumerate(versions):
        when = f"{FIRST_COMMIT_AT + number * COMMIT_STEP_S} +0000"
        yield f"commit {BRANCH}\nauthor {AUTHOR} {when}\ncommitter {AUTHOR} {when}\n".encode()
        yield _data(f"Release {version}\n".encode())
        yield b"deleteall\n"
        for entry in entries:
            mode = "100755" if entry.is_executable else "100644"
            yield f"M {mode} inline {_quoted(entry.path)}\n".encode()
            yield _data(entry.content)
        yield f"reset refs/tags/v{version}\nfrom {BRANCH}\n\n".encode()
    yield b"done\n"


def _quoted(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _git_environment() -> dict[str, str]:
    # The user's own configuration (hooks, signing, default branch) has no say in what is generated here.
    return {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def make_bundle(versions: Sequence[tuple[str, Path]], bundle: Path) -> None:
    """Writes a bundle whose history is the given (version, source distribution)s, oldest first.

    Raises subprocess.CalledProcessError when git fails.
    """
    with tempfile.TemporaryDirectory(dir=bundle.parent) as name:
        repository = Path(name) / "repository.git"
        subprocess.run(["git", "init", "--quiet", "--bare", repository], check=True, env=_git_environment())
        git = ["git", "-C", os.fspath(repository)]
        stream = b"".join(fast_import((version, read_sdist(archive)) for version, archive in versions))
        subprocess.run(
            [*git, "fast-import", "--quiet", "--done", "--date-format=raw"],
            input=stream,
            check=True,
            env=_git_environment(),
        )
        subprocess.run([*git, "symbolic-ref", "HEAD", BRANCH], check=True, env=_git_environment())
        made = Path(name) / "made.bundle"
        subprocess.run(
            [*git, "bundle", "create", "--quiet", made, "HEAD", BRANCH, "--tags"],
            check=True,
            env=_git_environment(),
        )
        made.rename(bundle)
