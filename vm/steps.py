"""Set-up steps: commands whose output goes to a log, and one line on stderr that says what ran and how long it took."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vm.outcome import SetupError
from vm.process import die_with_parent

LOG_TAIL_LINES = 25


def say(message: str) -> None:
    """Write one line of progress to stderr; stdout belongs to the command in the guest."""
    print(f"vm: {message}", file=sys.stderr, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a slow step and, when it succeeded, how long it took."""
    say(f"{title} ...")
    started_s = time.monotonic()
    yield
    say(f"{title}: {time.monotonic() - started_s:.1f} s")


def run_logged(
    command: Sequence[str | os.PathLike[str]],
    log: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str = "",
    dies_with_us: bool = True,
) -> None:
    """Run a set-up command with its output appended to ``log``.

    Raises SetupError with the last lines of its output and ``hint`` when it fails or does not exist.
    """
    words = [os.fspath(word) for word in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        sink.write(f"$ {' '.join(words)}\n".encode(errors="surrogateescape"))
        sink.flush()
        start = sink.tell()
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                preexec_fn=die_with_parent if dies_with_us else None,
                check=False,
            )
        except OSError as error:
            raise SetupError(f"cannot run {words[0]}: {error}. {hint}".rstrip()) from error
    if done.returncode != 0:
        with log.open("rb") as source:
            source.seek(start)
            tail = source.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        lines = "\n".join(f"    {line}" for line in tail)
        raise SetupError(
            f"{words[0]} failed with status {done.returncode}; its last output (all of it: {log}):\n{lines}\n{hint}".rstrip()
        )


def read_output(command: Sequence[str | os.PathLike[str]], *, cwd: Path | None = None) -> str:
    """Return what a short command prints; raises SetupError with its stderr when it fails or does not exist."""
    words = [os.fspath(word) for word in command]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, cwd=cwd, check=False)
    except OSError as error:
        raise SetupError(f"cannot run {words[0]}: {error}") from error
    if done.returncode != 0:
        raise SetupError(
            f"{' '.join(words)} failed with status {done.returncode}: {done.stderr.decode(errors='replace').strip()}"
        )
    return done.stdout.decode(errors="surrogateescape")
