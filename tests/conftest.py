"""What every test shares: anyio's plugin on asyncio, property tests that are the same in every run, turns.

`--hypothesis-profile=search` looks for new examples instead. With `-n 2` tests run in two processes; one that
is marked `alone` measures the machine, and then the other process waits.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# A time limit for an example would measure the machine's load, and a random one makes a suite that flakes.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("suite")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def place_of_turns(config: pytest.Config) -> Path | None:
    """Where the processes of one run agree on turns; none, where there is one process."""
    given = getattr(config, "workerinput", None)
    return None if given is None else Path(tempfile.gettempdir()) / f"dispatcher-tests-{given['testrunuid']}"


@contextmanager
def turn(place: Path, *, alone: bool) -> Iterator[None]:
    """Hold a turn together with the other processes, or alone.

    Whoever waits holds the door, so that nobody who came later goes first, and one that wants to be alone is
    not passed by for ever.
    """
    place.mkdir(exist_ok=True)
    with (place / "room").open("w") as room:
        with (place / "door").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test in its turn, where there are several processes."""
    place = place_of_turns(item.config)
    if place is None:
        return (yield)
    with turn(place, alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave nothing behind; where another process still runs, it has nobody to agree with any more."""
    place = place_of_turns(session.config)
    if place is not None:
        shutil.rmtree(place, ignore_errors=True)
