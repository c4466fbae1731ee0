"""What the query of a management call selects: ids, filters, a page. Pure; used where rows are listed.

A filter names a field of a row's view. Values of one filter are alternatives, filters add up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qs

from dispatcher.devserver.options import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Row = TypeVar("Row")
FIELDS: Final = frozenset(
    (
        *("messageId", "url", "topicName", "queueName", "label", "flowControlKey", "state"),
        *("scheduleId", "callerIp", "responseStatus"),
    )
)
"""Filters that name a field; a field that a row has not matches nothing."""
FROM: Final = "fromDate"
TO: Final = "toDate"
_PAGING: Final = frozenset(("count", "cursor", "order", "qstash_token"))


class Query:
    """The query of one request, decoded; raises `Refused(400, …)` for a filter that nobody knows."""

    def __init__(self, text: str, *ids: str) -> None:
        self._values = parse_qs(text, keep_blank_values=True)
        unknown = self._values.keys() - FIELDS - _PAGING - {FROM, TO, *ids}
        if unknown:
            raise Refused(400, f"unknown query parameters: {', '.join(sorted(unknown))}")

    def values(self, name: str) -> list[str]:
        """Every value of a parameter."""
        return self._values.get(name, [])

    def number(self, name: str, default: int, least: int = 0) -> int:
        """A parameter that is a whole number."""
        text = self._values.get(name, [str(default)])[-1]
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise Refused(400, f"{name} must be a whole number, {least} or more")
        return int(text)

    @property
    def is_filtered(self) -> bool:
        """Whether it says which rows."""
        return bool(self._values.keys() & {*FIELDS, FROM, TO})

    def matches(self, view: Mapping[str, Any], at: int) -> bool:
        """Whether a row of this view and date (unix milliseconds) is meant."""
        if not self.number(FROM, 0) <= at <= self.number(TO, at):
            return False
        filters = self._values.keys() & FIELDS
        return all(_texts(name, view.get(name)) & set(self._values[name]) for name in filters)

    def page(self, rows: Sequence[Row], most: int) -> tuple[list[Row], str | None]:
        """The rows behind the cursor, `count` or `most` of them; and where the next page begins, if any."""
        start, count = self.number("cursor", 0), min(self.number("count", most, 1), most)
        end = start + count
        return list(rows[start:end]), str(end) if end < len(rows) else None


def _texts(name: str, value: Any) -> set[str]:
    if value is None:
        return set()
    return {one.strip() for one in value.split(",")} if name == "label" else {str(value)}
