"""What of the working tree goes into the guest."""

import subprocess
from pathlib import Path

import pytest

from vm.outcome import SetupError
from vm.project import TreeChangedError, all_requirements, copy_files, read_project, source_files

PYPROJECT = """
[build-system]
requires = ["setuptools"]
[project]
name = "thing"
dependencies = ["one>=1"]
[project.optional-dependencies]
daemon = ["two"]
test = ["thing[daemon]", "three"]
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a repository with tracked, new, ignored, deleted and unrelated files."""
    root = tmp_path / "tree"
    for name in ("src/tracked.py", "src/gone.py", "vm/run", "tests/test_it.py", "docs/x.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / ".gitignore").write_text("*.o\n")
    git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    (root / "src/new.py").write_text("new")
    (root / "src/ignored.o").write_text("object")
    (root / "src/link").symlink_to("../daemon")
    (root / "src/gone.py").unlink()
    return root


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in source_files(root)}


def test_tracked_and_new_files_are_taken_ignored_and_unrelated_ones_not(tree: Path) -> None:
    assert names(tree) == {"pyproject.toml", "src/tracked.py", "src/new.py", "src/link"}


def test_a_tree_without_git_is_taken_but_for_what_was_built(tree: Path) -> None:
    subprocess.run(["rm", "-rf", tree / ".git"], check=True)
    (tree / "src/__pycache__").mkdir()
    (tree / "src/__pycache__/tracked.cpython-311.pyc").write_text("")
    assert names(tree) == {"pyproject.toml", "src/tracked.py", "src/new.py", "src/ignored.o", "src/link"}


def test_the_key_changes_with_what_goes_into_the_wheel_only(tree: Path) -> None:
    before = read_project(tree).key
    (tree / "tests/test_it.py").write_text("other")
    (tree / "src/ignored.o").write_text("other")
    assert read_project(tree).key == before
    (tree / "src/new.py").write_text("other")
    assert read_project(tree).key != before


def test_requirements_are_those_of_the_extras_which_may_name_each_other(tree: Path) -> None:
    project = read_project(tree)
    assert project.requires == ("one>=1", "three", "two")
    assert project.build_requires == ("setuptools",)
    circle = {"a": ["Thing[b]"], "b": ["thing[a, c]", "x"], "c": ["y"]}
    assert all_requirements("thing", [], circle, ["a"]) == ("x", "y")


def test_a_missing_extra_or_file_is_named(tree: Path) -> None:
    with pytest.raises(SetupError, match="no extra 'daemon'"):
        all_requirements("thing", [], {}, ["daemon"])
    (tree / "pyproject.toml").write_text("[project]\nname = 1\n")
    with pytest.raises(SetupError, match=r"pyproject\.toml"):
        read_project(tree)
    (tree / "pyproject.toml").unlink()
    with pytest.raises(SetupError, match=r"pyproject\.toml is missing"):
        read_project(tree)


def test_the_copy_is_the_tree_links_included(tree: Path, tmp_path: Path) -> None:
    copy_files(read_project(tree), tmp_path / "copy")
    assert (tmp_path / "copy/src/new.py").read_text() == "new"
    assert (tmp_path / "copy/src/link").readlink() == Path("../daemon")


def test_a_tree_that_changes_while_it_is_copied_is_noticed(tree: Path, tmp_path: Path) -> None:
    project = read_project(tree)
    (tree / "src/new.py").write_text("edited meanwhile")
    with pytest.raises(TreeChangedError):
        copy_files(project, tmp_path / "first")
    (tree / "src/new.py").unlink()
    with pytest.raises(TreeChangedError, match=r"new\.py vanished"):
        copy_files(project, tmp_path / "second")
