"""The programs' log on standard error: lines for people, or one JSON object a line.

Only the programs set this up; the library logs to its own logger and leaves the rest to whoever embeds it.
What is logged elsewhere has no token, no body and no query string in it; should the service's own words quote
a token after all, it is masked here. A standard error that nobody reads any more ends nothing.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import orjson

from dispatcher.settings import MASK, SECRET_MIN

if TYPE_CHECKING:
    from typing import TextIO

OTHERS_LEVEL: Final = logging.WARNING
"""What other packages have to say is heard from here on, at whatever level our own log is."""
logger: Final = logging.getLogger("dispatcher")


_hidden: set[str] = set()


def hide(*secrets: str) -> None:
    """Mask these, and those named before, in every line from now on."""
    _hidden.update(one for one in secrets if len(one) >= SECRET_MIN)


def _masked(text: str) -> str:
    for secret in _hidden:
        text = text.replace(secret, MASK)
    return text


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _masked(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - overridden
        # The message may quote the service's words: none of them begins a line of its own.
        message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        return f"{_instant(record)} {record.levelname.lower():<7} {message}"


class _JSONFormatter(logging.Formatter):
    """Fields: time, level, logger, message, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": _instant(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _masked(record.getMessage()),
        }
        if record.exc_info:
            told["exception"] = _masked(self.formatException(record.exc_info))
        try:
            return orjson.dumps(told).decode()
        except orjson.JSONEncodeError:  # half a surrogate pair in a message
            return orjson.dumps({k: v.encode(errors="replace").decode() for k, v in told.items()}).decode()


FORMATTERS: Final = {"text": _TextFormatter, "json": _JSONFormatter}


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Log to a stream, standard error by default, in one of `FORMATTERS`; may be called again."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(FORMATTERS[form]())
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(OTHERS_LEVEL)
    logger.setLevel(level.upper())


def _instant(record: logging.LogRecord) -> str:
    instant = datetime.fromtimestamp(record.created, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")
