"""The working tree that the guest gets: its files, a copy of them to build in, and what it requires."""

import os
import re
import shutil
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vm.cache import hash_files
from vm.outcome import SetupError
from vm.steps import read_output

EXTRAS = ("daemon", "test")
# What no wheel is made of: changing it must not cost a rebuild.
NOT_IN_WHEEL = frozenset(
    {"vm", "tests", "docs", "bench", "demo", ".ci", ".github", "build", "CHANGELOG.md", ".gitignore"}
)
# Left out of a tree that git does not describe.
NEVER_SOURCE = frozenset(
    {".git", ".venv", "build", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
)
NAME_OF_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?")


class TreeChangedError(Exception):
    """Somebody edits the working tree at this moment; trying again helps."""


@dataclass(frozen=True, slots=True)
class Project:
    """What a wheel is made from: the tree, its files, and what pyproject.toml asks for."""

    root: Path
    files: tuple[Path, ...]
    # The hash of the files' content.
    key: str
    build_requires: tuple[str, ...]
    requires: tuple[str, ...]


def source_files(root: Path) -> tuple[Path, ...]:
    """Return the files of the working tree that a wheel may need: tracked or not, but not what git ignores."""
    if (root / ".git").exists() and shutil.which("git"):
        # The tree may belong to another user than root, who runs this; git refuses that unless told.
        names = read_output(
            [
                "git",
                "-c",
                "safe.directory=*",
                "-C",
                root,
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ]
        ).split("\0")
        found = {root / name for name in names if name}
    else:
        found = set(_walk(root))
    kept = (path for path in found if path.relative_to(root).parts[0] not in NOT_IN_WHEEL)
    return tuple(sorted(path for path in kept if path.is_symlink() or path.is_file()))


def _walk(root: Path) -> Iterable[Path]:
    for base, directories, names in os.walk(root):
        for name in list(directories):
            if (Path(base) / name).is_symlink():
                yield Path(base) / name
        directories[:] = [name for name in directories if name not in NEVER_SOURCE]
        yield from (Path(base) / name for name in names if not name.endswith(".pyc"))


def all_requirements(
    name: str, dependencies: Sequence[str], optional: dict[str, list[str]], extras: Sequence[str]
) -> tuple[str, ...]:
    """Return the requirements of a project with these extras; an extra may name others of the same project."""
    wanted = list(dependencies)
    pending, seen = list(extras), set[str]()
    while pending:
        extra = pending.pop(0)
        if extra in seen:
            continue
        seen.add(extra)
        if extra not in optional:
            raise SetupError(
                f"pyproject.toml has no extra {extra!r}. Next step: add it to [project.optional-dependencies]."
            )
        for requirement in optional[extra]:
            found = NAME_OF_REQUIREMENT.match(requirement)
            if found and found[1].lower() == name.lower():
                pending += [word.strip() for word in (found[2] or "").split(",") if word.strip()]
            else:
                wanted.append(requirement)
    return tuple(sorted(set(wanted)))


def read_project(root: Path) -> Project:
    """Read what is needed of a working tree; raises SetupError when it has no usable pyproject.toml."""
    path = root / "pyproject.toml"
    try:
        table = tomllib.loads(path.read_text())
        project = table["project"]
        files = source_files(root)
        return Project(
            root,
            files,
            hash_files(root, files),
            tuple(table["build-system"]["requires"]),
            all_requirements(
                project["name"],
                project.get("dependencies", []),
                project.get("optional-dependencies", {}),
                EXTRAS,
            ),
        )
    except FileNotFoundError as error:
        if path.exists():
            raise TreeChangedError(f"{error.filename} vanished while it was read") from error
        raise SetupError(f"{path} is missing. Next step: use --bare to boot without the project.") from error
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise SetupError(
            f"cannot read the project from {path}: {error!r}. Next step: mend it, or use --bare."
        ) from error


def copy_files(project: Project, target: Path) -> None:
    """Copy the project's files; raises TreeChangedError when the copy is not what the project's key stands for."""
    try:
        for path in project.files:
            place = target / path.relative_to(project.root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place, follow_symlinks=False)
    except FileNotFoundError as error:
        raise TreeChangedError(f"{error.filename} vanished while it was copied") from error
    if (
        hash_files(target, [target / path.relative_to(project.root) for path in project.files])
        != project.key
    ):
        raise TreeChangedError("files changed while they were copied")
