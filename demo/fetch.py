"""Set-up: brings what the agents work on, by the registries' ordinary clients, once; what is there already is only checked.

DIRECTORY/downloads/     source distributions, as fetched
DIRECTORY/input/         what the agents get: wheels/, lz4.bundle, humanize.bundle, measurements.csv
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo import pins, repository
from demo.pins import Pin
from demo.tools import measurements

# Some 345 MiB once loaded as lists.
MEASUREMENTS: Final = 620_000
# Fetching waits for the network most of the time, building metadata for the processor.
PARALLEL_FETCHES: Final = 3

Say = Callable[[str], None]


class SetupFailed(Exception):
    """Something the agents need could not be brought; the message says what and what to do."""


@dataclass(frozen=True, slots=True)
class Store:
    """Where fetched files lie."""

    root: Path

    @property
    def downloads(self) -> Path:
        return self.root / "downloads"

    @property
    def input(self) -> Path:
        return self.root / "input"

    @property
    def wheels(self) -> Path:
        return self.input / "wheels"


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(pin: Pin, directory: Path) -> Path | None:
    """The file of `pin` in `directory`, with the right content; None when it is not there."""
    stem = f"{pin.name.replace('-', '_')}-{pin.version}"
    for path in directory.glob(f"{stem}*"):
        if path.name.removeprefix(stem)[:1] in ("-", ".") and sha256_of(path) == pin.sha256:
            return path
    return None


def download(pin: Pin, directory: Path, *, is_wheel: bool) -> None:
    """Fetches one pinned file with pip. Raises SetupFailed."""
    kind = (
        [
            "--only-binary=:all:",
            "--python-version=3.11",
            "--implementation=py",
            "--abi=none",
            "--platform=any",
        ]
        if is_wheel
        else ["--no-binary=:all:"]
    )
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(pin.requirement + "\n", encoding="utf-8")
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--require-hashes", *kind, "--dest", scratch, "--requirement", str(requirements),
        ]  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            tail = "\n".join(f"    {line}" for line in done.stderr.splitlines()[-12:])
            raise SetupFailed(
                f"pip could not fetch {pin.name} {pin.version}:\n{tail}\n"
                "Next step: check that pip reaches its package index (pip download --no-deps iniconfig), then start again."
            )
        requirements.unlink()
        found = find(pin, Path(scratch))
        if found is None:
            raise SetupFailed(
                f"pip fetched something else than {pin.name} {pin.version}. Next step: start again."
            )
        found.replace(directory / found.name)


def bring(wanted: Sequence[Pin], directory: Path, *, is_wheel: bool, say: Say) -> list[Path]:
    """The files of `wanted` in `directory`, in the same order; fetches what is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [pin for pin in wanted if find(pin, directory) is None]
    if missing:
        kind = "wheels" if is_wheel else "source distributions"
        say(
            f"fetching {len(missing)} {kind} with pip: {', '.join(f'{pin.name} {pin.version}' for pin in missing)}"
        )
        with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
            list(pool.map(lambda pin: download(pin, directory, is_wheel=is_wheel), missing))
    paths = [find(pin, directory) for pin in wanted]
    return [path for path in paths if path is not None]


def make_once(path: Path, key: str, make: Callable[[Path], None], say: Say, what: str) -> None:
    """Makes a generated file when it is missing or was made of something else; `key` stands for what it is made of."""
    stamp = path.with_name(f".{path.name}.key")
    if path.exists() and stamp.exists() and stamp.read_text(encoding="ascii") == key:
        return
    say(f"making {what}")
    stamp.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    make(partial)
    partial.replace(path)
    stamp.write_text(key, encoding="ascii")


def _make_bundle(name: str, wanted: Sequence[Pin], store: Store, say: Say) -> None:
    archives = bring(wanted, store.downloads, is_wheel=False, say=say)
    versions = [pin.version for pin in wanted]
    key = sha256_of(Path(repository.__file__)) + "".join(pin.sha256 for pin in wanted)

    def make(path: Path) -> None:
        repository.make_bundle(list(zip(versions, archives, strict=True)), path)

    make_once(
        store.input / f"{name}.bundle",
        key,
        make,
        say,
        f"a git repository of {len(versions)} releases of {name}",
    )


def set_up(root: Path, say: Say) -> Store:
    """Everything the agents need, under `root`. Raises SetupFailed."""
    if shutil.which("git") is None:
        raise SetupFailed("git is not installed here. Next step: install it (apt-get install git).")
    store = Store(root.resolve())
    store.input.mkdir(parents=True, exist_ok=True)
    try:
        _make_bundle("lz4", pins.LIBRARY, store, say)
        _make_bundle("humanize", pins.PACKAGE, store, say)
    except subprocess.CalledProcessError as error:
        raise SetupFailed(f"{error}. Next step: read git's own message above.") from error
    bring(pins.WHEELS, store.wheels, is_wheel=True, say=say)
    key = f"{MEASUREMENTS} {sha256_of(Path(measurements.__file__))}"
    make_once(store.input / "measurements.csv", key, lambda path: measurements.write(path, MEASUREMENTS), say,
          f"a file of {MEASUREMENTS} measurements")  # fmt: skip
    return store
