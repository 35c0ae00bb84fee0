"""The contract's own checks, proto/Makefile: it passes them, and they notice what would break clients."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [
    pytest.mark.skipif(shutil.which("npm") is None, reason="buf comes by npm, which is not installed here"),
    pytest.mark.timeout(300),
]


def make(target: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # Without what an outer make would hand down.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    return subprocess.run(
        ["make", "-s", "-C", str(root / "proto"), target],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout of the contract alone, with the tool of the real one."""
    make("lint")
    (tmp_path / "src" / "agentcgroup").mkdir(parents=True)
    (tmp_path / "src" / "agentcgroup" / "proto").symlink_to("../../proto")
    shutil.copytree(
        ROOT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("*.py", "*.pyi", "__pycache__")
    )
    (tmp_path / "build").symlink_to(ROOT / "build")
    return tmp_path


def edit(root: Path, name: str, old: str, new: str) -> None:
    path = root / "proto" / "v1" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_contract_keeps_the_rules_and_its_promises() -> None:
    done = make("check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("types.proto", "optional uint64 memory_bytes = 1;", "optional uint32 memory_bytes = 1;"),
        ("types.proto", "  CALL_STATE_ENDED = 6;\n", ""),
        ("types.proto", "string call_id = 4;", "string call_id = 40;"),
        ("agent.proto", "rpc GetLimits(", "rpc ReadLimits("),
        ("operator.proto", "returns (stream WatchEventsResponse)", "returns (WatchEventsResponse)"),
    ],
)
def test_what_would_break_a_client_is_found_and_explained(copy: Path, name: str, old: str, new: str) -> None:
    edit(copy, name, old, new)
    done = make("breaking", copy)
    assert done.returncode != 0
    assert name in done.stdout
    assert "Add instead of changing" in done.stderr


def test_what_is_added_breaks_nobody(copy: Path) -> None:
    edit(copy, "types.proto", "uint64 lost = 11;", "uint64 lost = 11;\n  string added = 99;")
    done = make("check", copy)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_node_it_says_what_to_install(copy: Path) -> None:
    (copy / "build").unlink()
    tools = copy / "bin"
    tools.mkdir()
    for tool in ("bash", "sh", "make"):
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    done = subprocess.run(
        ["make", "-s", "-C", str(copy / "proto"), "lint"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tools)},
    )
    assert done.returncode != 0
    assert "apt-get install nodejs npm" in done.stderr
