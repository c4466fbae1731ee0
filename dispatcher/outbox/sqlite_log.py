"""SQLite's write-ahead log, read by ourselves: is it whole, and which pages does it hold?

SQLite takes the first frame whose checksum is wrong for the end of the log, and what follows for leftovers:
right for a write that was cut off, and a silent loss where a bit has flipped. Leftovers have another salt;
frames with the log's own salt behind a wrong one mean damage. (After a loss of power they can also be parts
of a last transaction that nobody was told of; then nothing is lost by looking closely.) Reads only; for
`sqlite_recovery`.
"""

from __future__ import annotations

import sys
from array import array
from struct import Struct as Layout
from typing import TYPE_CHECKING, Final, NamedTuple

from dispatcher.outbox.sqlite_schema import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

_HEAD: Final = Layout(">8I")
_FRAME: Final = Layout(">6I")
MAGIC_LITTLE: Final = 0x377F0682
"""The last bit says in which order of bytes checksums are taken."""
_MASK: Final = 0xFFFFFFFF

Sums = tuple[int, int]


class Frame(NamedTuple):
    """One page in the log."""

    page: int
    pages_after: int
    """Pages of the file after the transaction that it ends; 0 if it ends none."""
    data: bytes
    is_good: bool


def is_torn_inside(path: Path) -> bool:
    """Whether something of this log follows behind something that is wrong; raises `OSError`."""
    has_wrong = False
    for frame in frames(path):
        if has_wrong:
            return True
        has_wrong = not frame.is_good
    return has_wrong and _is_header_wrong(path)


def frames(path: Path) -> Iterator[Frame]:
    """Every frame that carries the log's salt; each is judged by the sums that the one before it carries."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        head = file.read(_HEAD.size)
        if len(head) == _HEAD.size:
            yield from _frames(file, head)


def _frames(file: BinaryIO, head: bytes) -> Iterator[Frame]:
    magic, _, page_bytes, _, *salt, first, second = _HEAD.unpack(head)
    is_little = magic == MAGIC_LITTLE
    sums: Sums | None = (first, second)
    if not _is_right(head):
        page_bytes, is_little, sums, salt = PAGE_BYTES, sys.byteorder == "little", None, []
    while True:
        header, data = file.read(_FRAME.size), file.read(page_bytes)
        if len(header) < _FRAME.size or len(data) < page_bytes:
            return
        page, pages_after, *own_salt, first, second = _FRAME.unpack(header)
        salt = salt or own_salt
        if own_salt != salt:
            return
        is_good = sums is not None and _sum(header[:8] + data, sums, is_little=is_little) == (first, second)
        yield Frame(page, pages_after, data, is_good)
        sums = (first, second)


def _is_header_wrong(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
    return len(head) == _HEAD.size and not _is_right(head)


def _is_right(head: bytes) -> bool:
    magic, *_, first, second = _HEAD.unpack(head)
    is_magic = magic & ~1 == MAGIC_LITTLE
    return is_magic and _sum(head[:24], (0, 0), is_little=magic == MAGIC_LITTLE) == (first, second)


def _sum(data: bytes, sums: Sums, *, is_little: bool) -> Sums:
    words = array("I", data)
    if is_little != (sys.byteorder == "little"):
        words.byteswap()
    first, second = sums
    pairs = iter(words)
    for one, other in zip(pairs, pairs, strict=True):
        first = (first + one + second) & _MASK
        second = (second + other + first) & _MASK
    return first, second
