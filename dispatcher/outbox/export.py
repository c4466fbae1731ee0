"""A dead letter as a line that `dispatcher send` reads, with what is known of its failure beside it.

It shows bodies, so who calls it knows that its reader may have them: `dispatcher outbox export` for a file
that it opened itself, and the admin listener for who presents the key out of the file's lock.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

import orjson

from dispatcher.core.wire import single_target
from dispatcher.errors import OutboxError
from dispatcher.outbox.codec import unpack
from dispatcher.sdk import FAILURE_KEY

if TYPE_CHECKING:
    from dispatcher.outbox.codec import Kept
    from dispatcher.outbox.store import Found

ID_KEY: Final = "id"
"""Of the message, in what is said of its failure."""


def exported(found: Found) -> bytes:
    """One line, its end included.

    What a line cannot say stands beside the failure: the bytes of a message that cannot be read, the target
    of a request whose query speaks to the service.
    """
    attempts = [attempt._asdict() for attempt in found.attempts]
    failure: dict[str, Any] = {ID_KEY: found.record.id, "reason": found.reason, "attempts": attempts}
    try:
        kept = unpack(found.record.data)
        item = _item(kept)
        if kept.target is not None and kept.target != single_target(kept.destination, kept.queue):
            failure["target"] = kept.target
    except OutboxError:
        item = {}
        failure["record_base64"] = base64.b64encode(found.record.data).decode()
    return orjson.dumps({**item, FAILURE_KEY: failure}, option=orjson.OPT_APPEND_NEWLINE)


def _item(kept: Kept) -> dict[str, Any]:
    if kept.target is None:
        item: dict[str, Any] = orjson.loads(kept.data)
        return item
    headers: dict[str, str] = {}
    for (
        name,
        value,
    ) in kept.lines:  # a line has each name once; a list of values means the same (RFC 9110, 5.3)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    item = {"destination": kept.destination, "headers": headers}
    if kept.queue is not None:
        item["queue"] = kept.queue
    if kept.data:
        item["body_base64"] = base64.b64encode(kept.data).decode()
    return item
