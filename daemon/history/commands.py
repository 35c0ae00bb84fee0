"""Command lines as classes: what two runs of "the same kind of call" have in common.

`pytest -q tests/a.py` and `python3 -m pytest -x` are both "pytest"; `git -C x status` is "git status".
The class is a column of the history, so that later questions ("what do calls like this one need?") are
one indexed query.
"""

import os
import re
import shlex
from collections.abc import Sequence
from typing import Final

LENGTH_MAX: Final = 64
# Of a shell script this much is looked at.
SCRIPT_MAX: Final = 4096

_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ash"})
# Programs that only run another one, whose own options may come first.
_WRAPPERS: Final = frozenset({"env", "exec", "nice", "nohup", "setsid", "stdbuf", "sudo", "time", "timeout"})
# Programs whose first argument is a verb that decides what the call costs.
_WITH_VERB: Final = frozenset(
    {"apt", "apt-get", "bun", "bundle", "cargo", "conda", "docker", "dotnet", "go", "gradle", "git", "hg"}
    | {"kubectl", "make", "meson", "mvn", "npm", "npx", "pip", "pnpm", "podman", "poetry", "rustup", "tox"}
    | {"uv", "uvx", "yarn"}
)
# Options of the above that take the next word, which is then no verb.
_TAKES_WORD: Final = frozenset(
    {"-C", "-c", "-f", "-j", "-n", "-u", "-s", "-k", "--prefix", "--manifest-path"}
)
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_AMOUNT: Final = re.compile(r"[0-9.]+[smhd]?")
_VERSION: Final = re.compile(r"(?<=[a-z])[0-9][0-9.]*$")
_SEPARATORS: Final = frozenset({"&&", "||", ";", "|", "&"})
# At the head of a command these make a script more than a chain of commands: its class is the shell's.
_COMPOUND: Final = frozenset({"for", "while", "until", "if", "case", "{", "(", "!", "[["})


def command_class(command: Sequence[str]) -> str:
    """The class of a command line; "" for an empty one. At most LENGTH_MAX characters."""
    return _classify(list(command), depth=0)[:LENGTH_MAX]


def _classify(words: list[str], depth: int) -> str:
    words = _unwrapped(words)
    if not words:
        return ""
    program = _VERSION.sub("", os.path.basename(words[0])) or words[0]
    arguments = words[1:]
    if program in _SHELLS and depth == 0:
        script = _option_value(arguments, "c")
        return _classify(_last_simple_command(script), depth=1) or program if script else program
    if program == "python":
        module = _option_value(arguments, "m")
        return _classify([module, *arguments[arguments.index(module) + 1 :]], depth=1) if module else program
    if program in _WITH_VERB:
        verb = _first_verb(arguments)
        return f"{program} {verb}" if verb else program
    return program


def _unwrapped(words: list[str]) -> list[str]:
    # `timeout 10m env CI=1 pytest` is pytest.
    words = list(words)
    while words:
        if _ASSIGNMENT.match(words[0]):
            words.pop(0)
        elif os.path.basename(words[0]) in _WRAPPERS:
            if len(words) == 1:
                break
            words.pop(0)
            while words and (words[0].startswith("-") or _AMOUNT.fullmatch(words[0])):
                # `sudo -u root`, `env -u NAME`: the next word belongs to the option.
                del words[: 2 if words[0] in ("-u", "-g") else 1]
        else:
            break
    return words


def _option_value(arguments: list[str], letter: str) -> str:
    # `-c` may stand in a cluster: `bash -lc '...'`. The first word that is no option ends the search.
    for option, value in zip(arguments, arguments[1:], strict=False):
        if not option.startswith("-"):
            return ""
        if not option.startswith("--") and option.endswith(letter):
            return value
    return ""


def _last_simple_command(script: str) -> list[str]:
    # `cd /src && . venv/bin/activate && pytest -q | tail` is about pytest: the last of the && chain,
    # first of its pipe.
    lexer = shlex.shlex(script[:SCRIPT_MAX], posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # an unclosed quote: the shell will complain, the class is the shell's
        return []
    command: list[str] = []
    fresh, piped = True, False
    for word in words:
        if word in _SEPARATORS:
            piped = word == "|"
            fresh = True
        elif not piped:
            if fresh and word in _COMPOUND:
                return []
            if fresh:
                command = []
                fresh = False
            command.append(word)
    return command


def _first_verb(arguments: list[str]) -> str:
    skip = False
    for word in arguments:
        if skip:
            skip = False
        elif word in _TAKES_WORD:
            skip = True
        elif not word.startswith("-") and not _ASSIGNMENT.match(word):
            return word
    return ""
