"""Command lines of the same kind of call share a class."""

import pytest

from agentcgroup.daemon.policy.commands import command_class


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["pytest", "-q"], "pytest"),
        (["/usr/bin/python3.11", "-m", "pytest", "-x"], "pytest"),
        (["python", "-m", "pip", "install", "x"], "pip install"),
        (["python3", "-X", "dev", "/src/train.py", "--fast"], "train.py"),
        (["python3", "-c", "import this"], "python"),
        (["node", "build/index.js"], "index.js"),
        (["uv", "run", "--with", "pytest-xdist", "pytest", "-q"], "pytest"),
        (["uv", "sync"], "uv sync"),
        (["uvx", "--python", "3.12", "ruff", "check"], "ruff"),
        (["poetry", "run", "python", "-m", "pytest"], "pytest"),
        (["npx", "-y", "jest", "--ci"], "jest"),
        (["bundle", "exec", "rspec"], "rspec"),
        (["coverage", "run", "-m", "pytest"], "pytest"),
        (["cargo", "test", "--release"], "cargo test"),
        (["go", "test", "./..."], "go test"),
        (["docker", "compose", "up"], "docker compose"),
        (["bash", "-c", "bash -c 'timeout 5 pytest'"], "pytest"),
        (["env"] * 9 + ["pytest"], "pytest"),
        (["git", "-C", "/src", "status"], "git status"),
        (["git"], "git"),
        (["make", "-j", "4", "CFLAGS=-O2", "test"], "make test"),
        (["timeout", "10m", "env", "CI=1", "make", "test"], "make test"),
        (["sudo", "-u", "root", "apt-get", "-y", "install", "x"], "apt-get install"),
        (["env"], "env"),
        (["bash", "-lc", "cd /x && pytest -q 2>&1 | tail -5"], "pytest"),
        (["sh", "-c", ". venv/bin/activate; CI=1 npm test > log"], "npm test"),
        (["bash", "-c", "for i in 1 2; do make; done"], "bash"),
        (["bash", "-c", "echo 'unclosed"], "bash"),
        (["bash", "-c", ""], "bash"),
        (["sh", "-c", 'exec "$0" "$@"', "make"], "sh"),
        (["bash", "/src/script.sh"], "script.sh"),
        (["/src/script.sh"], "script.sh"),
        (["./configure"], "configure"),
        (["sha256sum", "x"], "sha256sum"),
        (["x" * 500], "x" * 64),
        ([""], ""),
        ([], ""),
    ],
)
def test_a_command_line_has_the_class_that_people_would_give_it(command: list[str], expected: str) -> None:
    assert command_class(command) == expected
