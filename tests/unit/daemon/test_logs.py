"""What a line of the daemon's log begins with: a priority where the journal reads it, else when it was written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_SPEAK = """\
import logging
from agentcgroup.daemon import logs
logs.configure("info", {log_format!r})
logging.getLogger("agentcgroup").warning("one\\ntwo")
"""


def _logged(path: Path, log_format: str, *, to_journal: bool) -> str:
    with path.open("wb") as stream:
        status = os.fstat(stream.fileno())
        inode = status.st_ino if to_journal else status.st_ino + 1
        environment = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{inode}"}
        program = [sys.executable, "-c", _SPEAK.format(log_format=log_format)]
        subprocess.run(program, stderr=stream, env=environment, check=True)
    return path.read_text()


def test_the_journal_gets_the_priority(tmp_path: Path) -> None:
    assert _logged(tmp_path / "log", "text", to_journal=True) == "<4>agentcgroup: one\n\ttwo\n"


def test_everybody_else_gets_the_time_and_the_level(tmp_path: Path) -> None:
    line = _logged(tmp_path / "log", "text", to_journal=False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [\d:,]+ WARNING agentcgroup: one\n\ttwo\n", line)


@pytest.mark.parametrize("to_journal", [True, False])
def test_json_is_json_everywhere(tmp_path: Path, to_journal: bool) -> None:
    assert '"message": "one\\ntwo"' in _logged(tmp_path / "log", "json", to_journal=to_journal)
