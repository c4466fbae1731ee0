"""The conformance suite, and its state machine, for the stores of this package."""

from __future__ import annotations

import shutil
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from dispatcher.outbox import sqlite_ledger
from dispatcher.outbox.memory import MemoryStore
from dispatcher.outbox.sqlite import SQLiteStore
from dispatcher.outbox.sqlite_ledger import RECENT_BYTES_MAX
from tests.outbox.conformance import PLENTY, StoreConformance
from tests.outbox.model import StoreMachine

if TYPE_CHECKING:
    from pathlib import Path

    from dispatcher.outbox.store import Store
    from tests.outbox.conformance import Place


class MemoryPlace:
    """Nowhere: each store is empty."""

    is_durable = False

    def make(self, *, max_messages: int = 1000, max_bytes: int = PLENTY) -> MemoryStore:
        return MemoryStore(max_messages, max_bytes)

    async def crash(self, store: Store) -> None:
        raise NotImplementedError


class SQLitePlace:
    """A file in a directory; a crash leaves copies of the file and its log in a fresh one."""

    is_durable = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.crashes = 0
        self.path = directory / "outbox.db"

    def make(self, *, max_messages: int = 1000, max_bytes: int = PLENTY) -> SQLiteStore:
        return SQLiteStore(self.path, max_messages=max_messages, max_bytes=max_bytes, min_free_bytes=0)

    async def crash(self, store: Store) -> None:
        await store.find("")  # the thread has finished what it was asked for before
        self.crashes += 1
        left = self.directory / f"after-{self.crashes}"
        left.mkdir()
        for path in (self.path, self.path.with_name("outbox.db-wal")):
            if path.exists():
                shutil.copyfile(path, left / path.name)
        self.path = left / "outbox.db"


class TestMemoryStore(StoreConformance):
    """In memory."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return MemoryPlace()


class TestSQLiteStore(StoreConformance):
    """In a file."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return SQLitePlace(tmp_path)


@pytest.mark.parametrize(
    ("kind", "recent"), [(MemoryPlace, 0), (SQLitePlace, RECENT_BYTES_MAX), (SQLitePlace, 0)]
)
def test_arbitrary_runs(
    kind: type[Place], recent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is done in whatever order, crashes among it, the store agrees with the model."""
    places = count()
    monkeypatch.setattr(sqlite_ledger, "RECENT_BYTES_MAX", recent)

    class Machine(StoreMachine):
        def new_place(self) -> Place:
            if kind is MemoryPlace:
                return MemoryPlace()
            directory = tmp_path / str(next(places))
            directory.mkdir()
            return SQLitePlace(directory)

    steps = settings(max_examples=60, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(Machine, settings=steps)
