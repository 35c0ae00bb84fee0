"""A store at a path of its own, closed in time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcgroup.daemon.history import HistoryStore
from tests.unit.daemon.history.entries import NOW_NS, Make


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.sqlite3"


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    stores: list[HistoryStore] = []

    def build(
        where: Path = path, keep_ms: int = 30 * 86_400_000, size_bytes: int = 64 << 20
    ) -> HistoryStore:
        store = HistoryStore(where, keep_ms=keep_ms, size_bytes=size_bytes, now_ns=lambda: NOW_NS)
        stores.append(store)
        return store

    yield build
    for store in stores:
        assert store.close(), "a store did not close in time"
