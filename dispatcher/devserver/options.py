"""What the headers of one message mean, validated as the service does it.

Pure. A header set is compiled once and shared by all messages that carry it (the deduplication id, which
differs from message to message, is taken out before). Called by `upstream` on its cache's misses and by
`routes` to show a message.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HeaderValue = str | list[str]
Pairs = tuple[tuple[str, str], ...]
"""Header lines in their order, names as they were sent; a name may occur more than once."""

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
DEDUPLICATION_ID: Final = "upstash-deduplication-id"
_DURATION: Final = re.compile(r"(?=.)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_FLOW_VALUE: Final = re.compile(r"\s*(parallelism|rate|period)\s*=\s*([0-9dhms]+)\s*")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_RETRY_DELAY: Final = re.compile(
    r"(?:\s+|\d+(?:\.\d+)?|[-+*/%^(),]|retried|pow|sqrt|abs|exp|floor|ceil|round|min|max)+"
)
_REDACT: Final = re.compile(r"body|header|header\[[^\[\]]+\]")
_CALLBACK: Final = re.compile(
    r"upstash-(failure-)?callback(?:-(forward-.+|method|timeout|retries|retry-delay))?"
)
_NOT_OURS: Final = frozenset(("authorization", "host", "content-length", "connection", "transfer-encoding"))


class Refused(Exception):  # noqa: N818 - the service's answer, not an error of ours
    """The service refuses the whole request: `status`, and `text` for `{"error": text}`."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(f"{status}: {text}")


class Options(Struct, frozen=True, gc=False):
    """One header set, compiled."""

    pairs: Pairs = ()
    method: str = "POST"
    delay: float = 0.0
    """Seconds."""
    not_before: int = 0
    """Unix seconds; 0 is none."""
    retries: int = 3
    content_based: bool = False
    content_key: bytes = b""
    """What of the headers goes into a content-based deduplication id."""
    scheduled: bool = False
    """It has a delay or a time, which a queue does not allow."""

    def value(self, name: str) -> str | None:
        """The last value of the header `name` (lower case), if it is there."""
        found = None
        for key, value in self.pairs:
            if key.lower() == name:
                found = value
        return found

    def with_prefix(self, prefix: str) -> dict[str, list[str]]:
        """Header lines whose lower-case name starts with `prefix`, the prefix stripped."""
        found: dict[str, list[str]] = {}
        for key, value in self.pairs:
            if key.lower().startswith(prefix):
                found.setdefault(key[len(prefix) :], []).append(value)
        return found

    def delivered(self) -> dict[str, list[str]]:
        """The headers the destination would get."""
        found = self.with_prefix("upstash-forward-")
        for name in [name for name in found if name.lower() == "content-type"]:
            del found[name]  # not honoured by the service: `Content-Type` itself is
        content_type = self.value("content-type")
        if content_type is not None:
            found["Content-Type"] = [content_type]
        return found


def parse_duration(text: str) -> int | None:
    """Whole seconds of `10s` or `1d10h30m`; `None` if it is no duration."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def is_name(text: str) -> bool:
    """Whether it may name a queue or a URL group."""
    return _NAME.fullmatch(text) is not None


def flatten(headers: Iterable[tuple[str, HeaderValue]]) -> Pairs:
    """Header lines: a list is as many lines of the same name."""
    pairs: list[tuple[str, str]] = []
    for name, value in headers:
        pairs.extend((name, one) for one in ([value] if isinstance(value, str) else value))
    return tuple(pairs)


def forward_all(pairs: Pairs) -> Pairs:
    """`Upstash-Header-Forward: true` on a single publish: every other header is forwarded as it is."""
    if not any(n.lower() == "upstash-header-forward" and v.lower() == "true" for n, v in pairs):
        return pairs
    return tuple(
        (n if _is_option(n) else f"Upstash-Forward-{n}", v) for n, v in pairs if n.lower() not in _NOT_OURS
    )


def only_options(pairs: Pairs) -> Pairs:
    """Of the request headers of a single publish, those that say something about the message."""
    return tuple((name, value) for name, value in forward_all(pairs) if _is_option(name))


def _is_option(name: str) -> bool:
    lower = name.lower()
    return lower == "content-type" or lower.startswith("upstash-")


def check_deduplication_id(value: str) -> None:
    """Raises `Refused` for `:` and white space, which the service does not take."""
    if ":" in value or any(character.isspace() for character in value):
        raise Refused(400, "invalid Upstash-Deduplication-Id: it must not contain ':' or white space")


def compile_options(pairs: Pairs) -> Options:
    """Validate a header set; raises `Refused(400, …)` saying which header and what would be right."""
    for name, value in pairs:
        check = _CHECKS.get(name.lower()) or _callback_check(name.lower())
        if check is not None:
            complaint = check(value)
            if complaint is not None:
                raise Refused(400, f"invalid {name}: {complaint}")
    bare = Options(pairs)
    if (bare.value("upstash-flow-control-key") is None) != (bare.value("upstash-flow-control-value") is None):
        raise Refused(400, "Upstash-Flow-Control-Key and Upstash-Flow-Control-Value need each other")
    delay, not_before = bare.value("upstash-delay"), bare.value("upstash-not-before")
    return Options(
        pairs,
        method=(bare.value("upstash-method") or "POST").upper(),
        delay=float(parse_duration(delay) or 0) if delay else 0.0,
        not_before=int(not_before) if not_before else 0,
        retries=int(bare.value("upstash-retries") or 3),
        content_based=(bare.value("upstash-content-based-deduplication") or "").lower() == "true",
        content_key=_content_key(bare),
        scheduled=bool(delay or not_before),
    )


def _content_key(options: Options) -> bytes:
    lines = sorted((n.lower(), v) for n, values in options.delivered().items() for v in values)
    return "\n".join(f"{name}:{value}" for name, value in lines).encode("utf-8", "surrogateescape")


def _is_duration(value: str) -> str | None:
    return None if parse_duration(value) is not None else "write a duration such as 10s or 1d10h30m"


def _is_count(value: str) -> str | None:
    return None if value.isascii() and value.isdigit() else "write a whole number, 0 or more"


def _is_method(value: str) -> str | None:
    return None if value.upper() in METHODS else f"the methods are {', '.join(METHODS)}"


def _is_flag(value: str) -> str | None:
    return None if value.lower() in ("true", "false") else "write true or false"


def _is_url(value: str) -> str | None:
    return None if has_scheme(value) else "endpoint has invalid scheme, add http:// or https://"


def _is_retry_delay(value: str) -> str | None:
    return None if _RETRY_DELAY.fullmatch(value) else "write an expression in milliseconds over `retried`"


def _is_flow_value(value: str) -> str | None:
    parts = [_FLOW_VALUE.fullmatch(part) for part in value.split(",")]
    limits = {part[1] for part in parts if part is not None}
    fine = all(parts) and limits & {"parallelism", "rate"}
    return None if fine else "write it as parallelism=10, rate=20, period=60s"


def _is_redaction(value: str) -> str | None:
    fine = all(_REDACT.fullmatch(part.strip()) for part in value.split(","))
    return None if fine else "the fields are body, header and header[NAME]"


def _is_flow_key(value: str) -> str | None:
    return None if is_name(value) else "only letters, digits, '_', '-' and '.' are allowed"


def _is_cron(_value: str) -> str | None:
    return "schedules are made at /v2/schedules"


def has_scheme(destination: str) -> bool:
    """Whether it is an http(s) URL with a host."""
    scheme, separator, rest = destination.partition("://")
    return bool(separator) and scheme.lower() in ("http", "https") and rest[:1] not in ("", "/", "?", "#")


_CHECKS: Final[dict[str, Callable[[str], str | None]]] = {
    "upstash-method": _is_method,
    "upstash-delay": _is_duration,
    "upstash-not-before": _is_count,
    "upstash-retries": _is_count,
    "upstash-retry-delay": _is_retry_delay,
    "upstash-timeout": _is_duration,
    "upstash-content-based-deduplication": _is_flag,
    "upstash-flow-control-key": _is_flow_key,
    "upstash-flow-control-value": _is_flow_value,
    "upstash-redact-fields": _is_redaction,
    "upstash-cron": _is_cron,
}


def _callback_check(name: str) -> Callable[[str], str | None] | None:
    match = _CALLBACK.fullmatch(name)
    if match is None:
        return None
    part = match[2]
    return _is_url if part is None else _CHECKS.get(f"upstash-{part}")


def callback_headers(options: Options, prefix: str) -> dict[str, list[str]]:
    """Headers forwarded to a callback (`upstash-callback-` or `upstash-failure-callback-`)."""
    found = options.with_prefix(f"{prefix}forward-")
    named = ("method", "timeout", "retries", "retry-delay")
    for name, values in options.with_prefix(prefix).items():
        # The Python SDK writes `Upstash-Callback-<Name>` for what it forwards to the callback.
        if not name.lower().startswith("forward-") and name.lower() not in named:
            found[name] = values
    return found
