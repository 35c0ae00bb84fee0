"""How a command can be told to need less memory: one table of the tools that agents run and the options they have."""

import re
from collections.abc import Sequence
from typing import Final

# What is true of any tool.
ANY: Final = "run fewer tests, use fewer parallel jobs, stream the file instead of loading it"

# Programs that stand before the one that matters; with `-m` or as a path it is the next word.
_WRAPPERS: Final = frozenset(
    {
        "env",
        "nice",
        "time",
        "timeout",
        "nohup",
        "stdbuf",
        "xargs",
        "sudo",
        "uv",
        "poetry",
        "pipenv",
        "npx",
        "run",
        "exec",
    }
)
_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh"})
_PYTHON: Final = re.compile(r"python[0-9.]*$")

# First match wins. Sources: each tool's own manual.
_TABLE: Final = {
    r"py\.?test|nose2|tox|unittest": "run fewer tests at a time (name a file, or -k), with fewer workers (-n 1)",
    r"g?make|ninja|bazel|scons": "use fewer parallel jobs (-j1)",
    r"cmake": "build with fewer parallel jobs (--parallel 1)",
    r"cargo|rustc": "use fewer parallel jobs (-j 1), and test one crate at a time (-p NAME)",
    r"go": "use fewer parallel builds (-p 1), and test one package at a time",
    r"gradlew?|mvnw?|javac?|sbt": "bound the JVM's heap (-Xmx) and its workers (gradle --max-workers 1, mvn -T 1)",
    r"jest|vitest": "run fewer tests at a time, in one worker (jest --runInBand, vitest --no-file-parallelism)",
    r"npm|yarn|pnpm|bun": "run one script at a time, and bound the heap (NODE_OPTIONS=--max-old-space-size=MIB)",
    r"node|tsc|webpack|vite|next|eslint|ts-node|tsx": "bound the heap (node --max-old-space-size=MIB), and take fewer files "
    "at a time",
    r"pip3?|conda|mamba": "install fewer packages at a time, as wheels (pip --only-binary :all: --no-cache-dir)",
    r"mypy|pyright|pylint|ruff|flake8": "check fewer files at a time, with one job",
    r"gcc|g\+\+|cc|c\+\+|clang|clang\+\+|ld|lld": "compile fewer files at once, or with less debug information (-g1)",
    r"git": "fetch less (--depth 1, --filter=blob:none), or pack with less (-c pack.threads=1 -c pack.windowMemory=64m)",
    r"rg|grep|ag|find|cat|jq|sort|awk": "search fewer files, and write to a file instead of collecting the output",
    r"docker|podman|buildah": "build one image at a time",
}
_ADVICE: Final = tuple((re.compile(f"(?:{names})$"), words) for names, words in _TABLE.items())


def _program(command: Sequence[str]) -> list[str]:
    """Names that the command may be known by, the most telling one first."""
    names: list[str] = []
    words = [word for word in command if word]
    index = 0
    while index < len(words):
        word = words[index]
        name = word.rpartition("/")[2]
        index += 1
        if word.startswith("-") or "=" in word or name in _WRAPPERS or name.replace(".", "").isdigit():
            continue
        if name in _SHELLS and {"-c", "-lc"} & set(words[index:]):
            # What a shell runs is a text; its words are looked through as they stand.
            script = words[-1]
            return [part.rpartition("/")[2] for part in re.split(r"[\s;&|()]+", script) if part] + [name]
        if _PYTHON.match(name) and "-m" in words[index:]:
            at = words.index("-m", index)
            return [*words[at + 1 : at + 2], name]
        names.append(name)
        break
    return names


def need_less(command: Sequence[str]) -> str:
    """What to change about `command` so that it needs less memory, as the rest of a sentence; never empty."""
    for name in _program(command):
        for names, words in _ADVICE:
            if names.match(name):
                return words
    return ANY
