"""What the command writes under /mnt/out: a disk of its own, read back without mounting.

A disk survives what a stream does not: after a timeout or a panic everything that the guest's kernel had written is
there: it commits every second, and without delayed allocation a commit takes the data along.
"""

import os
import shutil
import tempfile
from pathlib import Path

from vm import disk
from vm.outcome import SetupError
from vm.steps import run_logged

SIZE_BYTES = 16 * 1024 * disk.MIB
INODES = 128 * 1024
MOUNT_OPTIONS = "rw,noatime,nodelalloc,commit=1"
# Made by mke2fs in every file system.
NOT_WRITTEN = frozenset({"lost+found"})


def make(image: Path, log: Path) -> None:
    """Make the empty disk, sparse."""
    disk.make_empty_image(image, log, SIZE_BYTES, INODES)


def collect(image: Path, directory: Path, log: Path) -> int:
    """Bring the disk's files into ``directory``, replacing files of the same name; returns how many entries came.

    Raises SetupError when the disk cannot be read.
    """
    # Replays the journal. Status 1 says that something was mended, which is what it is for.
    run_logged(["sh", "-c", 'e2fsck -fy "$1" || [ $? -le 1 ]', "sh", image], log)
    with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
        run_logged(["debugfs", "-R", "rdump / .", image.absolute()], log, cwd=Path(scratch))
        entries = [entry for entry in Path(scratch).iterdir() if entry.name not in NOT_WRITTEN]
        if entries:
            directory.mkdir(parents=True, exist_ok=True)
        for entry in entries:
            _merge(entry, directory / entry.name)
        return len(entries)


def _merge(source: Path, target: Path) -> None:
    """Move ``source`` to ``target``; directories are united, anything else is replaced."""
    is_directory = source.is_dir() and not source.is_symlink()
    if is_directory and target.is_dir() and not target.is_symlink():
        for entry in list(source.iterdir()):
            _merge(entry, target / entry.name)
        return
    if target.is_dir() and not target.is_symlink():
        raise SetupError(
            f"{target} is a directory, and the guest wrote a file of that name."
            " Next step: remove it or choose another --out."
        )
    if os.path.lexists(target):
        target.unlink()
    shutil.move(source, target)
