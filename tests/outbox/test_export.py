"""Dead letters as lines for `dispatcher send`: what a line cannot say stands beside the failure."""

from __future__ import annotations

import base64

import orjson

from dispatcher.core.batch import SingleRequest
from dispatcher.core.wire import Encoded
from dispatcher.message import Message
from dispatcher.outbox.codec import pack
from dispatcher.outbox.export import exported
from dispatcher.outbox.store import Found, Record
from dispatcher.sdk import line_to_message

URL = "https://example.com/hook"


def line_of(data: bytes) -> dict[str, object]:
    """A dead letter with this record, exported."""
    found = Found("dead", Record("out_1", data, None, 0.0), reason="400: no")
    line: dict[str, object] = orjson.loads(exported(found))
    return line


def alone(target: str, *lines: tuple[str, str], body: bytes = b"\xff") -> bytes:
    """The record of a message that travels alone."""
    encoded = Encoded(body, None, idempotent=False, owns_id=False, single=SingleRequest(target, lines))
    return pack(Message(URL), encoded)


def test_repeated_headers_become_a_list_of_values() -> None:
    """Nothing of them is lost, and the line can be sent."""
    line = line_of(alone(f"/v2/publish/{URL}", ("Upstash-Forward-X", "1"), ("Upstash-Forward-X", "2")))
    assert line["headers"] == {"Upstash-Forward-X": "1, 2"}
    assert line["body_base64"] == "/w=="
    assert line["_failure"] == {"id": "out_1", "reason": "400: no", "attempts": []}
    assert line_to_message(line).body == b"\xff"


def test_a_target_that_speaks_to_the_service_is_told() -> None:
    """A line has no place for its query."""
    target = f"/v2/publish/{URL}?upstash-method=PUT"
    assert line_of(alone(target))["_failure"]["target"] == target  # type: ignore[index]


def test_what_cannot_be_read_is_exported_as_its_bytes() -> None:
    """It does not hold up the others, and is not lost."""
    line = line_of(b"\xc1nonsense")
    assert base64.b64decode(line["_failure"]["record_base64"]) == b"\xc1nonsense"  # type: ignore[index]
    assert list(line) == ["_failure"]
