"""Rows read from the pages of a file that SQLite cannot find its way through: leaves of tables, cell by cell.

Without the tree above a leaf nobody knows whether it is still in use, so what is found counts only where the
tree failed, and only if its checksums are right. Reads only; used by `sqlite_rescue`.
"""

from __future__ import annotations

import struct
from struct import unpack_from
from typing import TYPE_CHECKING, Any, Final

from dispatcher.outbox.sqlite_rows import Row
from dispatcher.outbox.sqlite_schema import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

LEAF: Final = 0x0D
INLINE_MAX: Final = PAGE_BYTES - 35
INLINE_MIN: Final = (PAGE_BYTES - 12) * 32 // 255 - 23
ROW_BYTES_MAX: Final = 1 << 28
INTEGERS: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
"""Bytes of an integer by its serial type."""


def rows_in(path: Path) -> Iterator[Row]:
    """Every whole row of `messages` on any leaf, old ones among them; raises `OSError`."""
    pages = path.stat().st_size // PAGE_BYTES
    with path.open("rb") as file:
        for number in range(2, pages + 1):
            page = _page(file, number)
            if page[0] == LEAF:
                yield from _rows(file, page, pages)


def _rows(file: BinaryIO, page: bytes, pages: int) -> Iterator[Row]:
    (count,) = unpack_from(">H", page, 3)
    for at in range(8, min(8 + 2 * count, PAGE_BYTES - 1), 2):
        (cell,) = unpack_from(">H", page, at)
        try:
            row = _row(file, page, cell, pages)
        except (IndexError, TypeError, ValueError, struct.error):
            continue
        if row is not None and row.is_whole:
            yield row


def _row(file: BinaryIO, page: bytes, cell: int, pages: int) -> Row | None:
    size, at = _varint(page, cell)
    position, at = _varint(page, at)
    if size > ROW_BYTES_MAX:
        return None
    record = _values(_payload(file, page, at, size, pages))
    if len(record) != len(Row._fields):
        return None
    row = Row._make((position, *record[1:]))
    return row._replace(accepted_at=float(row.accepted_at))  # a whole number is kept as an integer


def _payload(file: BinaryIO, page: bytes, at: int, size: int, pages: int) -> bytes:
    """What a cell holds, on its page and on those that it overflows to."""
    if size <= INLINE_MAX:
        return page[at : at + size]
    inline = INLINE_MIN + (size - INLINE_MIN) % (PAGE_BYTES - 4)
    inline = inline if inline <= INLINE_MAX else INLINE_MIN
    parts, left = [page[at : at + inline]], size - inline
    (following,) = unpack_from(">I", page, at + inline)
    while left > 0 and 1 < following <= pages:
        overflow = _page(file, following)
        parts.append(overflow[4 : 4 + left])
        left -= PAGE_BYTES - 4
        (following,) = unpack_from(">I", overflow)
    return b"".join(parts)


def _values(payload: bytes) -> list[Any]:
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    return values


def _value(payload: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind == 0:
        return None, at
    if kind == 7:
        return float(unpack_from(">d", payload, at)[0]), at + 8
    if kind in (8, 9):
        return kind - 8, at
    if kind < 12:
        end = at + INTEGERS.get(kind, ROW_BYTES_MAX)
        return int.from_bytes(payload[at:end], "big", signed=True), end
    end = at + (kind - 12) // 2
    piece = payload[at:end]
    return (piece.decode() if kind % 2 else piece), end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | data[at], at + 1


def _page(file: BinaryIO, number: int) -> bytes:
    file.seek((number - 1) * PAGE_BYTES)
    return file.read(PAGE_BYTES)
