"""The cache: layers keyed by a hash of their inputs, built under a lock, valid only when complete."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Everything that is ever put into the cache's directory.
OWN_ENTRIES = frozenset(
    {"root", "kernel-*", "app", "app-bare", "environment", "wheel", "builder", "apt", "locks", "logs", "tmp"}
    | {"accelerator.json*"}
)
MARKER = ".complete"
KEY_DIGITS = 16
# A layer used this recently may be about to be booted by another process.
IN_USE_S = 300.0


def default_cache_directory() -> Path:
    """Return ``$AGENTCGROUP_CACHE_DIR``, or ``agentcgroup/vm`` below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("AGENTCGROUP_CACHE_DIR")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "agentcgroup" / "vm"


def hash_inputs(parts: Iterable[str | bytes]) -> str:
    """Return a short hex key of an ordered list of inputs; how they are split counts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:KEY_DIGITS]


def hash_files(root: Path, paths: Iterable[Path]) -> str:
    """Return a key of files: relative path, kind, executable bit, and content (or link target)."""
    parts: list[str | bytes] = []
    for path in sorted(paths):
        parts.append(os.fspath(path.relative_to(root)))
        if path.is_symlink():
            parts += ["link", os.readlink(path)]
        else:
            parts += ["executable" if os.access(path, os.X_OK) else "file", path.read_bytes()]
    return hash_inputs(parts)


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache directory; ``layer`` is the only way to put something into it that lasts."""

    root: Path

    def path(self, *names: str) -> Path:
        """Return a path inside the cache."""
        return self.root.joinpath(*names)

    def log(self, name: str) -> Path:
        """Return the log file of a set-up step."""
        return self.path("logs", f"{name}.log")

    @contextmanager
    def lock(self, name: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold an exclusive flock(2) named ``name``; ``on_wait`` is called once when another process has it."""
        directory = self.path("locks")
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / f"{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None:
                    on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def layer(
        self,
        kind: str,
        key: str,
        build: Callable[[Path], None],
        *,
        keep: int = 2,
        on_wait: Callable[[], None] | None = None,
    ) -> Path:
        """Return the directory of layer ``kind`` with ``key``, built by ``build(directory)`` when it is missing.

        It is built where it stays (virtual environments cannot be moved) and counts only once its marker is
        there, which is written last. Of each kind the ``keep`` most recently used keys stay, and those in recent use.
        """
        place = self.path(kind, key)
        if not (place / MARKER).exists():
            with self.lock(kind, on_wait):
                if not (place / MARKER).exists():
                    # The lock is ours, so what is there without a marker belongs to a process that died.
                    shutil.rmtree(place, ignore_errors=True)
                    place.mkdir(parents=True)
                    build(place)
                    (place / MARKER).touch()
                    self._drop_old(place.parent, keep)
        os.utime(place)
        return place

    def _drop_old(self, directory: Path, keep: int) -> None:
        layers = sorted(((entry.stat().st_mtime, entry) for entry in directory.iterdir()), reverse=True)
        for used_at_s, entry in layers[keep:]:
            if time.time() - used_at_s > IN_USE_S:
                shutil.rmtree(entry, ignore_errors=True)

    def clean(self) -> None:
        """Remove what this program put here, and the directory when nothing else is in it.

        The directory is the user's choice, so what is not ours stays.
        """
        for pattern in OWN_ENTRIES:
            for entry in self.root.glob(pattern):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def sizes_bytes(self) -> dict[str, int]:
        """Return the disk usage of every layer (``kind/key``), counting blocks, not lengths: images are sparse."""
        sizes: dict[str, int] = {}
        for place in sorted(self.root.glob("*/*")):
            if place.is_dir() and not place.is_symlink():
                sizes[f"{place.parent.name}/{place.name}"] = _disk_usage_bytes(place)
        return sizes


def _disk_usage_bytes(directory: Path) -> int:
    total = 0
    for base, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(base, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
