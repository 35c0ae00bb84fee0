"""Advice that fits the command, whatever stands around it."""

import pytest

from agentcgroup.daemon.policy.thrift import ANY, need_less


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["pytest", "-q"], "-n 1"),
        (["/usr/bin/python3.11", "-m", "pytest", "tests"], "fewer tests"),
        (["uv", "run", "pytest"], "fewer tests"),
        (["timeout", "60", "make", "-j8"], "-j1"),
        (["env", "CC=clang", "ninja"], "-j1"),
        (["cmake", "--build", "."], "--parallel 1"),
        (["bash", "-c", "cd src && make -j$(nproc)"], "-j1"),
        (["bash", "-lc", "cargo test 2>&1 | tail"], "-p NAME"),
        (["node", "server.js"], "--max-old-space-size"),
        (["npx", "jest"], "--runInBand"),
        (["npm", "run", "build"], "--max-old-space-size"),
        (["pip", "install", "torch"], "--no-cache-dir"),
        (["go", "test", "./..."], "-p 1"),
        (["./gradlew", "build"], "-Xmx"),
    ],
)
def test_known_tools_get_their_own_options(command: list[str], words: str) -> None:
    assert words in need_less(command)


@pytest.mark.parametrize(
    "command", [[], ["./own-program", "make"], ["python", "load.py"], ["-x"], ["", "env"]]
)
def test_anything_else_gets_what_is_true_of_all(command: list[str]) -> None:
    assert need_less(command) == ANY
