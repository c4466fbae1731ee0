"""The daemon's log: one line an event, readable by machines, without secrets."""

from __future__ import annotations

import io
import logging
from datetime import datetime
from typing import TYPE_CHECKING

import orjson
import pytest

from dispatcher.sidecar import logs

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGGER = logging.getLogger("dispatcher.sidecar")
SECRET = "a-secret-token"


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Set everything back: the log is the process's."""
    root, hidden = logging.getLogger(), set(logs._hidden)
    before = (root.handlers[:], root.level, logs.logger.level, logging.raiseExceptions)
    yield
    root.handlers[:], level, ours, logging.raiseExceptions = before
    root.setLevel(level)
    logs.logger.setLevel(ours)
    logs._hidden.clear()
    logs._hidden.update(hidden)


def test_a_json_line_has_the_fields_that_collectors_want() -> None:
    """Instant with its zone, level, logger, message; an exception in the same line."""
    stream = io.StringIO()
    logs.set_up("info", "json", stream)
    LOGGER.warning("two\nlines %d", 7)
    try:
        raise ValueError("planted")
    except ValueError:
        LOGGER.exception("it failed")
    first, second = (orjson.loads(line) for line in stream.getvalue().splitlines())
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {"level": "warning", "logger": "dispatcher.sidecar", "message": "two\nlines 7"}
    assert "ValueError: planted" in second["exception"]


def test_a_text_line_is_one_line() -> None:
    """What the service says cannot forge a line of its own."""
    stream = io.StringIO()
    logs.set_up("info", "text", stream)
    LOGGER.info("said: %s", "x\n2026-01-01T00:00:00.000Z error   forged\r")
    (line,) = stream.getvalue().splitlines()
    instant, level, message = line.split(maxsplit=2)
    assert datetime.fromisoformat(instant).utcoffset() is not None
    assert (level, message) == ("info", "said: x\\n2026-01-01T00:00:00.000Z error   forged\\r")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_secret_is_masked_wherever_it_stands(form: str) -> None:
    """In a message and in an exception; words that are too short to be secrets stay."""
    stream = io.StringIO()
    logs.set_up("info", form, stream)
    logs.hide(SECRET, "t")
    try:
        raise ValueError(f"Bearer {SECRET}")
    except ValueError:
        LOGGER.exception("the service said %s", SECRET)
    assert SECRET not in stream.getvalue()
    assert stream.getvalue().count("***") == 2
    assert "the service said" in stream.getvalue()


def test_levels_and_other_packages() -> None:
    """Ours from the level that was asked for, others only when something is wrong; the last set-up counts."""
    stream = io.StringIO()
    logs.set_up("error", "text", io.StringIO())
    logs.set_up("debug", "text", stream)
    LOGGER.debug("ours")
    logging.getLogger("aiohttp").info("theirs")
    logging.getLogger("aiohttp").warning("their trouble")
    assert [line.split(maxsplit=2)[2] for line in stream.getvalue().splitlines()] == ["ours", "their trouble"]


def test_a_surrogate_does_not_lose_the_line() -> None:
    """A message that is no Unicode text is told as well as it can be."""
    stream = io.StringIO()
    logs.set_up("info", "json", stream)
    LOGGER.info("half \ud800 a pair")
    assert orjson.loads(stream.getvalue())["message"] == "half ? a pair"


def test_a_broken_standard_error_ends_nothing() -> None:
    """Nobody reads it any more: no traceback, no exception."""
    stream = io.StringIO()
    logs.set_up("info", "text", stream)
    stream.close()
    LOGGER.error("to nobody")
