"""Command lines as classes: what two runs of "the same kind of call" have in common.

The class is the program's name without its path and version, with what only starts it taken off and a verb kept where
the verb decides what the call costs:

| written                                        | class         | because                                          |
|------------------------------------------------|---------------|--------------------------------------------------|
| `pytest -q tests/a.py`                         | `pytest`      | flags and paths say little about the need        |
| `python3.11 -m pytest`, `uv run pytest`        | `pytest`      | the module, or what the runner runs, is the tool |
| `timeout 10m nice env CI=1 make -j8 test`      | `make test`   | wrappers off, the target kept                    |
| `git -C /src status`                           | `git status`  | a program with verbs                             |
| `bash -lc 'cd /x && pytest -q \\| tail'`        | `pytest`      | the last command of the chain, first of its pipe |
| `python train.py`, `bash train.sh`             | `train.py`... | a script is the program                          |
| `python -c '...'`, `bash -c 'for i in ...'`    | `python`, `bash` | a program of no name is as good as unknown    |
"""

import re
import shlex
from collections.abc import Sequence
from typing import Final

LENGTH_MAX: Final = 64
# Of a shell script this much is looked at.
SCRIPT_MAX: Final = 4096
# How often one wrapper may stand in another; more is a joke or an attack.
DEPTH_MAX: Final = 4

_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ash"})
_INTERPRETERS: Final = frozenset({"python", "pypy", "node", "ruby", "perl", "Rscript", "julia"})
# Programs that only run another one, whose own options may come first.
_WRAPPERS: Final = frozenset(
    {
        "env",
        "exec",
        "nice",
        "ionice",
        "nohup",
        "setsid",
        "stdbuf",
        "sudo",
        "time",
        "timeout",
        "xvfb-run",
        "taskset",
    }
)
# The same as a program with a verb; "" where the program does nothing else.
_RUNNERS: Final = {
    "uv": "run", "uvx": "", "poetry": "run", "pipenv": "run", "pdm": "run", "hatch": "run", "rye": "run", "pipx": "run",
    "npx": "", "bunx": "", "bundle": "exec", "coverage": "run",
}  # fmt: skip
# Programs whose first argument is a verb that decides what the call costs.
_WITH_VERB: Final = frozenset(
    {"apt", "apt-get", "bun", "bundle", "cargo", "conda", "docker", "dotnet", "go", "gradle", "git", "hg"}
    | {
        "hatch",
        "kubectl",
        "make",
        "meson",
        "mvn",
        "npm",
        "pdm",
        "pip",
        "pipenv",
        "pipx",
        "pnpm",
        "podman",
        "poetry",
    }
    | {"rustup", "rye", "tox", "uv", "yarn"}
)
# Options of all the above that take the next word, which is then neither verb nor program.
_TAKES_WORD: Final = frozenset(
    {
        "-C",
        "-c",
        "-f",
        "-j",
        "-n",
        "-u",
        "-g",
        "-s",
        "-k",
        "-p",
        "--prefix",
        "--manifest-path",
        "--python",
        "--with",
    }
    | {"--project", "--package", "--directory", "--extra", "--group"}
)
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_AMOUNT: Final = re.compile(r"[0-9.]+[smhd]?")
_VERSION: Final = re.compile(r"(?<=[a-z])[0-9][0-9.]*$")
_SEPARATORS: Final = frozenset({"&&", "||", ";", "|", "&"})
# At the head of a command these make a script more than a chain of commands: its class is the shell's.
_COMPOUND: Final = frozenset({"for", "while", "until", "if", "case", "{", "(", "!", "[["})


def command_class(command: Sequence[str]) -> str:
    """The class of a command line; "" for an empty one. At most LENGTH_MAX characters."""
    return _classify(list(command), DEPTH_MAX)[:LENGTH_MAX]


def _classify(words: list[str], depth: int) -> str:
    words = _unwrapped(words)
    if not words:
        return ""
    name = _basename(words[0])
    if name.startswith("$"):  # only the shell knows what that is
        return ""
    program = _VERSION.sub("", name) or name
    arguments = words[1:]
    if depth == 0:
        return program
    if program in _RUNNERS:
        inner = _behind_runner(arguments, _RUNNERS[program])
        if inner:
            return _classify(inner, depth - 1)
    if program in _SHELLS:
        script = _option_value(arguments, "c")
        if script:
            return _classify(_last_simple_command(script), depth - 1) or program
    if program == "python":
        module = _option_value(arguments, "m")
        if module:
            return _classify([module, *arguments[arguments.index(module) + 1 :]], depth - 1)
    if program in _SHELLS or program in _INTERPRETERS:
        return _script_name(arguments) or program
    if program in _WITH_VERB:
        verb = _first_word(arguments)
        return f"{program} {verb}" if verb else program
    return program


def _basename(path: str) -> str:
    return path.rpartition("/")[2]


def _unwrapped(words: list[str]) -> list[str]:
    # `timeout 10m env CI=1 pytest` is pytest.
    words = list(words)
    while words:
        if _ASSIGNMENT.match(words[0]):
            words.pop(0)
        elif _basename(words[0]) in _WRAPPERS:
            if len(words) == 1:
                break
            words.pop(0)
            while words and (words[0].startswith("-") or _AMOUNT.fullmatch(words[0])):
                # `sudo -u root`, `env -u NAME`: the next word belongs to the option.
                del words[: 2 if words[0] in ("-u", "-g") else 1]
        else:
            break
    return words


def _behind_runner(arguments: list[str], verb: str) -> list[str]:
    """What `uv run --with x pytest -q` runs; [] when it does not run anything."""
    rest = list(arguments)
    if verb:
        if not rest or rest[0] != verb:
            return []
        rest.pop(0)
    while rest and rest[0].startswith("-"):
        if rest[0] == "--":
            return rest[1:]
        if rest[0] == "-m":  # coverage run -m pytest
            return rest[1:]
        del rest[: 2 if rest[0] in _TAKES_WORD else 1]
    return rest


def _option_value(arguments: list[str], letter: str) -> str:
    # `-c` may stand in a cluster: `bash -lc '...'`. The first word that is no option ends the search.
    for option, value in zip(arguments, arguments[1:], strict=False):
        if not option.startswith("-"):
            return ""
        if not option.startswith("--") and option.endswith(letter):
            return value
    return ""


def _script_name(arguments: list[str]) -> str:
    # `python -c '...'` has no name; `python -X dev -u tool.py` has.
    for word in arguments:
        if word in ("-c", "-e", "-"):
            return ""
        if not word.startswith("-") and "." in _basename(word):
            return _basename(word)
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


def _first_word(arguments: list[str]) -> str:
    skip = False
    for word in arguments:
        if skip:
            skip = False
        elif word in _TAKES_WORD:
            skip = True
        elif not word.startswith("-") and not _ASSIGNMENT.match(word):
            return word
    return ""
