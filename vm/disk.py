"""Disk images: ext4 file systems made from directories, without mounting anything.

The root needs a partition, because ``root=PARTLABEL=`` is the one name of it that the kernel resolves by itself: NVMe
namespaces come up in no fixed order, so device names say nothing. The other disks are bare file systems, which the
guest finds by their namespace number. Programs: mke2fs(8) ``-d``, sfdisk(8).
"""

import os
from pathlib import Path

from vm.steps import read_output, run_logged

# Raise this when images are made differently.
LAYER_FORMAT = "4"

ROOT_LABEL = "acg-root"
MIB = 1024 * 1024
BLOCK_BYTES = 4096
INODE_BYTES = 256
JOURNAL_MIB = 16
PARTITION_OFFSET_BYTES = MIB
# GPT keeps a copy of itself at the end of the disk.
PARTITION_TAIL_BYTES = MIB


def make_image(image: Path, tree: Path, log: Path) -> None:
    """Make a sparse file with an ext4 file system that holds a copy of ``tree``, with little room to spare."""
    size_bytes, inodes = _room(tree)
    image.unlink(missing_ok=True)
    _make_file_system(image, tree, log, size_bytes, inodes=inodes)


def make_empty_image(image: Path, log: Path, size_bytes: int, inodes: int) -> None:
    """Make a sparse file with an empty ext4 file system that survives the end of the guest: it has a journal."""
    image.unlink(missing_ok=True)
    _make_file_system(image, None, log, size_bytes, inodes=inodes, is_journaled=True)


def make_root_image(image: Path, tree: Path, log: Path, size_bytes: int) -> None:
    """Make a sparse disk image with one partition labelled ROOT_LABEL that holds a copy of ``tree``."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(PARTITION_OFFSET_BYTES + size_bytes + PARTITION_TAIL_BYTES)
    layout = f'label: gpt\\nstart={PARTITION_OFFSET_BYTES // 512}, size={size_bytes // 512}, name="{ROOT_LABEL}"\\n'
    run_logged(
        ["sh", "-c", f"printf '{layout}' | sfdisk -q --no-reread --no-tell-kernel \"$1\"", "sh", image], log
    )
    _make_file_system(image, tree, log, size_bytes, offset_bytes=PARTITION_OFFSET_BYTES)


def _room(tree: Path) -> tuple[int, int]:
    """Return the size in bytes and the number of inodes of a file system that a directory fits into."""
    length_bytes = int(read_output(["du", "-s", "--apparent-size", "--block-size=1", tree]).split()[0])
    inodes = int(read_output(["du", "-s", "--inodes", tree]).split()[0]) * 9 // 8 + 1024
    # Half a block is lost per file on average, nearly a whole one with tiny files.
    return (length_bytes + inodes * (BLOCK_BYTES + INODE_BYTES)) * 9 // 8 + 16 * MIB, inodes


def _make_file_system(
    image: Path,
    tree: Path | None,
    log: Path,
    size_bytes: int,
    *,
    inodes: int | None = None,
    offset_bytes: int = 0,
    is_journaled: bool = False,
) -> None:
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES), "-I", str(INODE_BYTES), "-m", "0"]
    words += ["-O", "^metadata_csum" if is_journaled else "^has_journal,^metadata_csum"]
    if is_journaled:
        # The default size would be written out in full at each run.
        words += ["-J", f"size={JOURNAL_MIB}"]
    words += ["-E", f"offset={offset_bytes},root_owner=0:0"]
    if inodes is not None:
        words += ["-N", str(inodes)]
    if tree is not None:
        words += ["-d", os.fspath(tree)]
    run_logged(
        [*words, os.fspath(image), str(-(-size_bytes // BLOCK_BYTES))],
        log,
        hint="Next step: read the log; the cache's file system may be full, or the directory changed meanwhile.",
    )
