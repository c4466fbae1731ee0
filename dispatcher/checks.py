"""What can be known beforehand of a header, a destination, a queue or an id: the service would refuse it.

The service refuses a *whole* batch for one invalid item, so what would spoil one is refused here, with words
that say what was wrong and what would be right. Pure: no clock, no loop, no socket, no log. A text names a
header and never shows its value (it may be a secret), nor a destination's user information or query.
Called by `options` and, on the admission of every message, by `core.wire`: the good path is one regular
expression a check, the reasons are worked out only once something is wrong.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from dispatcher.errors import MessageInvalid
from dispatcher.message import public_destination

DEDUPLICATION_ID: Final = "Upstash-Deduplication-Id"
CONTENT_BASED_DEDUPLICATION: Final = "Upstash-Content-Based-Deduplication"
_CANONICAL: Final = {
    name.lower(): name
    for name in (
        *("Content-Type", "Upstash-Method", "Upstash-Delay", "Upstash-Not-Before", "Upstash-Retries"),
        *("Upstash-Retry-Delay", "Upstash-Timeout", "Upstash-Callback", "Upstash-Failure-Callback"),
        *(DEDUPLICATION_ID, CONTENT_BASED_DEDUPLICATION, "Upstash-Flow-Control-Key"),
        *("Upstash-Flow-Control-Value", "Upstash-Label", "Upstash-Redact-Fields", "Upstash-Cron"),
    )
}
_PREFIXES: Final = ("Upstash-Forward-", "Upstash-Callback-", "Upstash-Failure-Callback-")

_NOT_TOKEN: Final = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")
_ITEM_HEADER: Final = re.compile(r"(?i:content-type|upstash-[!#$%&'*+\-.^_`|~0-9a-z]+)", re.ASCII)
_BAD_IN_VALUE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_INVISIBLE: Final = r"\s\x00-\x1f\x7f-\x9f\ud800-\udfff"  # white space, controls, and what UTF-8 cannot carry
_BAD_IN_ID: Final = re.compile(f"[:{_INVISIBLE}]")
_BAD_IN_QUEUE: Final = re.compile(f"[/{_INVISIBLE}]")
_BAD_IN_DESTINATION: Final = re.compile(f"[{_INVISIBLE}]")
_URL: Final = re.compile(
    rf"[hH][tT][tT][pP][sS]?://(?:[^/?#{_INVISIBLE}]*@)?[^:@/?#{_INVISIBLE}][^@/?#{_INVISIBLE}]*(?:[/?#][^{_INVISIBLE}]*)?"
)
_GROUP_OR_ROUTE: Final = re.compile(rf"[^/:?#{_INVISIBLE}]+|api/[^{_INVISIBLE}]+")


def check_header(name: str, value: str, *, cure: bool = True) -> None:
    """Refuse a header that cannot stand in a batch item; with `cure`, say how it is meant to be given.

    Raises:
        MessageInvalid: The text names the header and never shows its value.
    """
    if not isinstance(name, str) or not _ITEM_HEADER.fullmatch(name):
        _refuse_header_name(name, cure=cure)
    if not isinstance(value, str):
        raise MessageInvalid(f"`{name}`: a header's value is a str, not {type(value).__name__}")
    # Printable text has neither controls nor surrogates, and is the rule.
    if not value.isprintable() and (bad := _BAD_IN_VALUE.search(value)):
        raise MessageInvalid(f"`{name}`: {_character(bad)} is not allowed in a header's value")
    lowered = name.lower()
    if lowered == "upstash-deduplication-id":
        check_deduplication_id(value)
    elif lowered == "upstash-cron":
        hint = ": create it with the service's own call, `POST /v2/schedules`" if cure else ""
        raise MessageInvalid(f"`{name}`: a batch carries no schedules{hint}")


def check_deduplication_id(value: object) -> None:
    """Refuse an id for which the service would answer 400 for the whole batch.

    Raises:
        MessageInvalid: It is no str, empty, or has `:`, white space or a control character.
    """
    _check_text("deduplication id", value, _BAD_IN_ID, "any characters but `:` and white space")


def check_queue(name: object) -> None:
    """Refuse what cannot be the name of an upstream FIFO queue.

    Raises:
        MessageInvalid: It is no str, empty, or has `/`, white space or a control character.
    """
    _check_text("queue", name, _BAD_IN_QUEUE, "any characters but `/` and white space")


def check_destination(destination: object) -> None:
    """Refuse what is neither an http(s) URL, nor a URL group's name, nor an `api/…` route.

    Raises:
        MessageInvalid: The text shows the destination without user information and query.
    """
    if not isinstance(destination, str):
        raise MessageInvalid(f"destination: a non-empty str is wanted, not {type(destination).__name__}")
    form = _URL if "://" in destination[:9] else _GROUP_OR_ROUTE
    if not form.fullmatch(destination):
        _refuse_destination(destination)


def says_true(value: str) -> bool:
    """Whether a header's value switches something on (`true`; one official SDK writes `True`)."""
    return value == "true" or value.strip().lower() == "true"


def is_http_url(value: str) -> bool:
    """Whether it is an http(s) URL with a host, without white space or control characters."""
    return _URL.fullmatch(value) is not None


def is_token(name: str) -> bool:
    """Whether it can be a header's name (RFC 9110, token)."""
    return bool(name) and not _NOT_TOKEN.search(name)


def canonical_name(name: str) -> str:
    """The header's name in the documented capitalisation; unknown ones stay as they are."""
    lowered = name.lower()
    if known := _CANONICAL.get(lowered):
        return known
    for prefix in _PREFIXES:
        if lowered.startswith(prefix.lower()):
            return prefix + name[len(prefix) :]
    return name


def _check_text(what: str, value: object, bad: re.Pattern[str], allowed: str) -> None:
    if not isinstance(value, str):
        raise MessageInvalid(f"{what}: a non-empty str is wanted, not {type(value).__name__}")
    if not value:
        raise MessageInvalid(f"{what}: it is empty; allowed are {allowed}")
    if found := bad.search(value):
        raise MessageInvalid(f"{what}: {_character(found)} at index {found.start()}; allowed are {allowed}")


def _refuse_header_name(name: object, *, cure: bool) -> NoReturn:
    if not isinstance(name, str) or not name:
        what = "an empty one" if isinstance(name, str) else type(name).__name__
        raise MessageInvalid(f"a header's name is a non-empty str, not {what}")
    if bad := _NOT_TOKEN.search(name):
        # Only what stands before it: `Authorization: Bearer …` given as a name must not be shown.
        raise MessageInvalid(f"`{name[: bad.start()]}…`: {_character(bad)} is not allowed in a header's name")
    hint = f': `Options(forward={{"{name}": …}})`' if cure else "; allowed are `Content-Type` and `Upstash-*`"
    raise MessageInvalid(f"`{name}` would not be forwarded{hint}")


def _refuse_destination(destination: str) -> NoReturn:
    if not destination:
        raise MessageInvalid("destination: it is empty; allowed are a URL, a URL group's name, `api/…`")
    shown = public_destination(destination)
    if bad := _BAD_IN_DESTINATION.search(destination):
        raise MessageInvalid(f"destination: {_character(bad)} at index {bad.start()} is not allowed in it")
    scheme, separator, _ = destination.partition("://")
    if separator and scheme.lower() in ("http", "https"):
        raise MessageInvalid(f"destination {shown!r}: the URL has no host")
    if separator and not set(scheme) & set(":/?#"):
        raise MessageInvalid(f"destination {shown!r}: only http:// and https:// URLs are delivered to")
    if destination.startswith("api/"):
        raise MessageInvalid(f"destination {shown!r}: a route needs a name, such as `api/llm`")
    authority, slash, path = shown.partition("/")  # a URL without its scheme may have user information
    shown = authority.rpartition("@")[2] + slash + path
    raise MessageInvalid(
        f"destination {shown!r}: a URL needs its scheme: https://{shown}; a URL group's name has no `/ : ? #`"
    )


def _character(found: re.Match[str]) -> str:
    character = found.group()
    return f"{character!r} (U+{ord(character):04X})"
