"""A daemon's edges and core on real sockets, over a fake machine."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.harness import Daemon


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, because the path of a Unix socket is; pytest's own directories are not."""
    place = Path(tempfile.mkdtemp(prefix="acg-"))
    yield place / "run"
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
async def daemon(run_dir: Path) -> AsyncIterator[Daemon]:
    served = Daemon(run_dir)
    await served.start()
    try:
        yield served
    finally:
        await served.stop()
