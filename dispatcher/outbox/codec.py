"""A message as a store keeps it: the bytes that will travel, and what is needed to send and to name it.

It is encoded once, when it is accepted: whatever is tried later sends the same bytes under the same id. The
form has a version; a later one of ours reads every earlier one. Used by `outbox` and `relay`.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from dispatcher.core.batch import SingleRequest
from dispatcher.core.wire import Encoded
from dispatcher.errors import OutboxError
from dispatcher.message import Message

VERSION: Final = 1


class Kept(Struct, gc=False, array_like=True, omit_defaults=True):
    """One message; fields may be added at the end only."""

    version: int
    destination: str
    data: bytes
    deduplication_id: str | None
    idempotent: bool
    owns_id: bool
    queue: str | None = None
    target: str | None = None
    """Of one that travels alone, the target and the header lines of its request."""
    lines: tuple[tuple[str, str], ...] = ()
    noted: str = ""
    """What an observer of the dispatcher wants to be told when the message is handed in."""

    @property
    def message(self) -> Message:
        """As far as anybody needs it: where it goes, and its id."""
        return Message(self.destination, queue=self.queue, deduplication_id=self.deduplication_id)

    @property
    def encoded(self) -> Encoded:
        """What travels."""
        single = None if self.target is None else SingleRequest(self.target, self.lines)
        return Encoded(self.data, self.deduplication_id, self.idempotent, self.owns_id, single)


def pack(message: Message, encoded: Encoded, noted: str = "") -> bytes:
    """The bytes to keep."""
    single = encoded.single
    return _encode(
        Kept(
            VERSION,
            message.destination,
            encoded.data,
            encoded.deduplication_id,
            encoded.idempotent,
            encoded.owns_id,
            message.queue or None,
            None if single is None else single.target,
            () if single is None else single.headers,
            noted,
        )
    )


def unpack(data: bytes) -> Kept:
    """The same, read.

    Raises:
        OutboxError: It is no message that this version can read.
    """
    try:
        kept = _decode(data)
    except msgspec.DecodeError as error:
        raise OutboxError(f"a kept message cannot be read: {error}") from None
    if kept.version > VERSION:
        raise OutboxError(
            f"a kept message has the form {kept.version}; this version reads up to {VERSION}: "
            "use the version that wrote it, or a newer one"
        )
    return kept


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Kept).decode
