"""What a producer hands in, and what it gets back.

These are the records of the hot path: one `Message` a call and one `Receipt` a delivery, made by the
hundred thousand a second, so they are msgspec structs outside the garbage collector's care (0.06–0.09 µs
each, against 0.8–1.3 µs for a frozen dataclass). They must therefore never sit in a reference cycle.
Nothing is validated here: a generator of messages cannot die half-way, `core.wire` judges on admission.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Struct, UnsetType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatcher.options import Options

REPR_DESTINATION_CHARACTERS: Final = 80


def public_destination(destination: object) -> str:
    """The destination without what may be secret in it: user information, query and fragment."""
    if not isinstance(destination, str):
        return f"<{type(destination).__name__}>"
    bare = destination.split("#", 1)[0].split("?", 1)[0]
    scheme, separator, rest = bare.partition("://")
    if separator and scheme.isalpha():
        authority, slash, path = rest.partition("/")
        bare = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
    else:
        bare = bare.rpartition("@")[2]  # a mistyped URL may hold a password anywhere before it
    return bare if len(bare) <= REPR_DESTINATION_CHARACTERS else bare[:REPR_DESTINATION_CHARACTERS] + "…"


class _Positional(Struct, gc=False, eq=False):
    destination: str
    body: str | bytes | bytearray | memoryview | None = None


class Message(_Positional, kw_only=True, gc=False, eq=False):
    """One message for one destination.

    Args:
        destination: A URL with its scheme, a URL group's name, or a provider route such as `api/llm`.
        body: Text, or bytes; bytes that are not UTF-8 travel alone: a batch carries only text.
        json: Any value orjson can write, instead of `body`; sets `Content-Type: application/json` unless
            given; `None` sends `null`.
        options: Delivery options, compiled once and reused.
        headers: This item's own headers, merged over the options': `Content-Type` or `Upstash-*`.
        queue: Name of the upstream FIFO queue; its messages keep their order of submission.
        deduplication_id: Without `:` and white space; if absent the dispatcher draws one.
        deliver_within: Seconds until the service must have confirmed it; default from the configuration.
    """

    json: Any | UnsetType = UNSET
    options: Options | None = None
    headers: Mapping[str, str] | None = None
    queue: str | None = None
    deduplication_id: str | None = None
    deliver_within: float | None = None

    def __repr__(self) -> str:
        queue = f" queue={self.queue!r}" if self.queue else ""
        return f"<Message to {public_destination(self.destination)!r}{queue}>"

    @classmethod
    def from_sdk(cls, request: Mapping[str, Any]) -> Message:
        """A `BatchRequest` or `BatchJsonRequest` of the official SDK, as it is."""
        from dispatcher.sdk import message_from_sdk

        return message_from_sdk(request)


class Endpoint(Struct, gc=False, frozen=True):
    """One endpoint of a URL group, and what the service made of the message there."""

    url: str
    message_id: str | None
    deduplicated: bool = False
    error: str | None = None
    """The service's words if this endpoint did not get the message (`message_id` is then `None`)."""


_JSON_NAMES: Final = {
    "message_id": "messageId",
    **{
        name: f"dispatcher.{name}"
        for name in ("deduplication_id", "attempts", "duplicate_possible", "endpoints")
    },
}
"""Replies are decoded straight into receipts: what is ours has names there that no service uses."""


class Receipt(Struct, gc=False, rename=_JSON_NAMES):
    """The service has accepted the message."""

    message_id: str | None
    """The service's id; `None` for a URL group, where `message_ids` has one for each endpoint."""
    deduplicated: bool = False
    """The service had seen the caller's own deduplication id (or content) before, and enqueued nothing."""
    deduplication_id: str | None = None
    """The id that made retries safe: the message's own, or drawn by the dispatcher."""
    attempts: int = 1
    """How many requests carried the message."""
    duplicate_possible: bool = False
    """It was repeated after the deduplication window, with an unknown outcome before."""
    endpoints: tuple[Endpoint, ...] = ()
    """One for each endpoint of a URL group, in the service's order."""

    @property
    def message_ids(self) -> tuple[str, ...]:
        """Every id the service gave: one, or one for each endpoint that took the message."""
        if self.message_id is not None:
            return (self.message_id,)
        return tuple(e.message_id for e in self.endpoints if e.message_id is not None)
