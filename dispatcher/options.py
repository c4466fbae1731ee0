"""Delivery options, compiled to headers once and reused for any number of messages.

Everything is judged on construction, in the producer's own line, with words that say what an option was and
what is allowed; a text never shows a header's value, nor a callback's query. Pure: no clock, no loop, no
socket, no log. Made by producers and by `sdk`; read by `core.wire`, which keeps the encoded headers in
`Options.cache`. The checks of single headers and names live in `checks` and are offered here too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args

from dispatcher.checks import (
    CONTENT_BASED_DEDUPLICATION,
    DEDUPLICATION_ID,
    canonical_name,
    check_deduplication_id,
    check_destination,
    check_header,
    check_queue,
    is_http_url,
    is_token,
    says_true,
)
from dispatcher.errors import MessageInvalid
from dispatcher.message import public_destination

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "OPTION_NAMES",
    "FlowControl",
    "Options",
    "check_deduplication_id",
    "check_destination",
    "check_header",
    "check_queue",
    "says_true",
]

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

_WEEK: Final = 7 * 86_400
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION_ALLOWED: Final = (
    "allowed are seconds as an int >= 0, or numbers with units s, m, h, d like '1d10h30m'"
)
# A unix time in seconds of this size lies 3,000 years ahead: someone passed milliseconds.
_MILLISECONDS_SURELY: Final = 100_000_000_000

_DURATION: Final = re.compile(r"(?:[0-9]+[smhd])+")


@dataclass(frozen=True, slots=True)
class FlowControl:
    """Limits the service keeps for all messages of one key; what exceeds them is delayed, never refused.

    Args:
        key: The name under which messages are counted together.
        parallelism: How many deliveries may be active at once.
        rate: How many may start in a period.
        period: Seconds as an int, or a duration like `1m`; at most a week; the service's default is 1 s.
    """

    key: str
    parallelism: int | None = None
    rate: int | None = None
    period: str | int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not self.key.strip():
            raise MessageInvalid("flow_control: `key` must be a non-empty str")
        if self.parallelism is None and self.rate is None:
            raise MessageInvalid("flow_control: give `parallelism`, `rate` or both")
        for name, value in (("parallelism", self.parallelism), ("rate", self.rate)):
            if value is not None:
                _integer(f"flow_control: {name}", value, minimum=1)
        if (
            self.period is not None
            and not 1 <= _seconds(_duration("flow_control: period", self.period)) <= _WEEK
        ):
            raise MessageInvalid(f"flow_control: period={self.period!r}: allowed is 1 second to 7 days")

    @property
    def value(self) -> str:
        """As the service reads it: `parallelism=10, rate=20, period=60s`."""
        period = None if self.period is None else _duration("period", self.period)
        parts = (("parallelism", self.parallelism), ("rate", self.rate), ("period", period))
        return ", ".join(f"{name}={part}" for name, part in parts if part is not None)


class Options:
    """How the service shall deliver a message; validated and compiled once, used for any number of messages.

    Immutable; equal only to itself. `None` leaves the service's default.

    Args:
        content_type: MIME type, delivered to the destination.
        method: `GET`, `POST` (the default), `PUT`, `PATCH` or `DELETE`.
        forward: Headers for the destination (the SDK's `headers`). The service does not honour a forwarded
            `Content-Type`: use `content_type`.
        callback: http(s) URL that is called with the destination's answer.
        callback_headers: `Upstash-Callback-<Name>` headers, such as `{"Forward-X-Tenant": "42"}`.
        failure_callback: http(s) URL that is called when the service's retries are exhausted.
        failure_callback_headers: `Upstash-Failure-Callback-<Name>` headers.
        retries: How often the *service* retries the destination.
        retry_delay: Expression in milliseconds over `retried`, such as `pow(2, retried) * 1000`.
        delay: Seconds as an int, or a duration like `1d10h30m`; refused by the service on a queue.
        not_before: Unix time in seconds, or an aware datetime; wins over `delay`.
        deduplication_id: Without `:` and white space. For options shared by messages this makes them *one*.
        content_based_deduplication: The service derives the id from destination, body and headers.
        timeout: How long the destination may take: seconds as an int, or a duration.
        flow_control: A `FlowControl`, or a mapping with its fields.
        label: One label or several, to filter the service's logs by.
        redact: `{"body": True, "header": True | ["Authorization", …]}`, hidden in the service's logs.
        headers: Raw `Content-Type` and `Upstash-*` headers, passed on verbatim, undocumented ones too.

    Raises:
        MessageInvalid: The text names the option, what it was and what is allowed.
    """

    __slots__ = (
        "_given",
        "cache",
        "compiled",
        "has_deduplication_id",
        "is_content_deduplicated",
        "is_delayed",
    )

    compiled: Mapping[str, str]
    """The headers, in the documented capitalisation; read-only."""
    cache: dict[object, object]
    """For `core.wire`, which keeps the encoded headers here."""
    has_deduplication_id: bool
    is_content_deduplicated: bool
    is_delayed: bool
    """`Upstash-Delay` or `Upstash-Not-Before` is among the headers."""
    _given: tuple[str, ...]

    def __init__(
        self,
        *,
        content_type: str | None = None,
        method: Method | None = None,
        forward: Mapping[str, str] | None = None,
        callback: str | None = None,
        callback_headers: Mapping[str, str] | None = None,
        failure_callback: str | None = None,
        failure_callback_headers: Mapping[str, str] | None = None,
        retries: int | None = None,
        retry_delay: str | None = None,
        delay: str | int | None = None,
        not_before: int | datetime | None = None,
        deduplication_id: str | None = None,
        content_based_deduplication: bool | None = None,
        timeout: str | int | None = None,
        flow_control: FlowControl | Mapping[str, Any] | None = None,
        label: str | Sequence[str] | None = None,
        redact: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # The first statement, so `locals()` is exactly what the caller gave; the table below has each name.
        given = {name: value for name, value in locals().items() if name != "self" and value is not None}
        self._fill(_compile(given), tuple(given))

    def _fill(self, compiled: dict[str, str], given: tuple[str, ...]) -> None:
        put = object.__setattr__  # the class itself refuses
        lowered = {name.lower(): value for name, value in compiled.items()}
        put(self, "compiled", MappingProxyType(compiled))
        put(self, "cache", {})
        put(self, "has_deduplication_id", DEDUPLICATION_ID.lower() in lowered)
        content_based = says_true(lowered.get(CONTENT_BASED_DEDUPLICATION.lower(), ""))
        put(self, "is_content_deduplicated", content_based)
        put(self, "is_delayed", "upstash-delay" in lowered or "upstash-not-before" in lowered)
        put(self, "_given", given)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Options are immutable: make new ones with another `{name}`")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Options are immutable: `{name}` stays")

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (dict(self.compiled), self._given)

    def __repr__(self) -> str:
        return f"<Options {', '.join(self._given) or 'without any'}>"


def _revive(compiled: dict[str, str], given: tuple[str, ...]) -> Options:
    options = Options.__new__(Options)
    options._fill(compiled, given)  # noqa: SLF001 - the other half of `__reduce__`
    return options


def _compile(given: Mapping[str, Any]) -> dict[str, str]:
    compiled: dict[str, str] = {}
    seen: set[str] = set()
    for option, value in given.items():
        for name, text in _COMPILERS[option](option, value):
            check_header(name, text)
            if name.lower() in seen:
                raise MessageInvalid(f"{option}: `{name}` is given twice; each header is allowed once")
            seen.add(name.lower())
            compiled[canonical_name(name)] = text
    return compiled


def _as(header: str, convert: Callable[[str, Any], str]) -> Callable[[str, Any], Iterator[tuple[str, str]]]:
    def compile_option(option: str, value: Any) -> Iterator[tuple[str, str]]:
        yield header, convert(option, value)

    return compile_option


def _with_prefix(prefix: str) -> Callable[[str, Any], Iterator[tuple[str, str]]]:
    def compile_headers(option: str, value: Any) -> Iterator[tuple[str, str]]:
        for name, text in _pairs(option, value):
            bare = name[len(prefix) :] if name.lower().startswith(prefix.lower()) else name
            if not bare:
                raise MessageInvalid(f"{option}: a header's name must not be empty")
            # The SDK writes whatever it is given with str(); of bytes or True that is never what was meant.
            number = isinstance(text, int | float) and not isinstance(text, bool)
            yield prefix + bare, str(text) if number else text

    return compile_headers


def _pairs(option: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise MessageInvalid(f"{option}: a mapping of names to values is wanted, not {type(value).__name__}")
    for name, text in value.items():
        if not isinstance(name, str):
            raise MessageInvalid(f"{option}: a header's name is a str, not {type(name).__name__}")
        yield name, text


def _content_based(option: str, value: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(value, bool):
        raise MessageInvalid(f"{option}: True or False is wanted, not {type(value).__name__}")
    if value:
        yield CONTENT_BASED_DEDUPLICATION, "true"


def _flow_control(option: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        _check_keys(option, value, ("key", "parallelism", "rate", "period"))
        if value.get("key") is None:
            raise MessageInvalid(f"{option}: `key` is missing; it names what is counted together")
        value = FlowControl(**value)
    if not isinstance(value, FlowControl):
        raise MessageInvalid(f"{option}: a FlowControl or a mapping is wanted, not {type(value).__name__}")
    yield "Upstash-Flow-Control-Key", value.key
    yield "Upstash-Flow-Control-Value", value.value


def _redact(option: str, value: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(value, Mapping):
        raise MessageInvalid(f"{option}: a mapping is wanted, not {type(value).__name__}")
    _check_keys(option, value, ("body", "header"))
    body, header = value.get("body"), value.get("header")
    if not isinstance(body, bool | None):
        raise MessageInvalid(f"{option}: `body` is True or absent, not {type(body).__name__}")
    if not isinstance(header, bool | list | tuple | None):
        raise MessageInvalid(f"{option}: `header` is True or a list of names, not {type(header).__name__}")
    fields = ["body"] if body else []
    if isinstance(header, list | tuple):
        fields += [f"header[{_token(option, name)}]" for name in header]
    elif header:
        fields.append("header")
    if fields:
        yield "Upstash-Redact-Fields", ",".join(fields)


def _check_keys(option: str, value: Mapping[Any, Any], allowed: tuple[str, ...]) -> None:
    for key in value:
        if key not in allowed:
            raise MessageInvalid(f"{option}: {key!r} is unknown; allowed are {', '.join(allowed)}")


def _token(option: str, name: object) -> str:
    if not isinstance(name, str) or not is_token(name):
        raise MessageInvalid(f"{option}: {name!r} is not a header's name")
    return name


def _text(option: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        what = "an empty one" if isinstance(value, str) else type(value).__name__
        raise MessageInvalid(f"{option}: a non-empty str is wanted, not {what}")
    return value


def _method(option: str, value: Any) -> str:
    if value not in get_args(Method):
        raise MessageInvalid(f"{option}={value!r}: allowed are {', '.join(get_args(Method))}")
    return str(value)


def _integer(option: str, value: Any, *, minimum: int = 0) -> str:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise MessageInvalid(f"{option}={value!r}: allowed is an int >= {minimum}")
    return str(value)


def _duration(option: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return f"{value}s"
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return value
    raise MessageInvalid(f"{option}={value!r}: {_DURATION_ALLOWED}")


def _seconds(duration: str) -> int:
    return sum(int(n) * _UNIT_SECONDS[unit] for n, unit in re.findall(r"([0-9]+)([smhd])", duration))


def seconds_of(duration: str) -> int | None:
    """The seconds of a duration as it stands in a header, such as `1d10h30m`; `None` if it is none."""
    return _seconds(duration) if _DURATION.fullmatch(duration) else None


def _instant(option: str, value: Any) -> str:
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise MessageInvalid(f"{option}={value!r}: a datetime needs its time zone, such as tzinfo=UTC")
        value = int(value.timestamp())
    if isinstance(value, int) and value >= _MILLISECONDS_SURELY:
        raise MessageInvalid(f"{option}={value!r} looks like milliseconds; unix seconds are wanted")
    return _integer(option, value)


def _callback(option: str, value: Any) -> str:
    if not isinstance(value, str) or not is_http_url(value):
        raise MessageInvalid(f"{option}={public_destination(value)!r}: an http:// or https:// URL is wanted")
    return value


def _deduplication_id(option: str, value: Any) -> str:
    check_deduplication_id(value)
    return str(value)


def _label(option: str, value: Any) -> str:
    if not isinstance(value, list | tuple):
        return _text(option, value)
    if not value or any("," in _text(option, one) for one in value):
        raise MessageInvalid(f"{option}: a list of one or more labels is wanted, each without a comma")
    return ",".join(value)


_COMPILERS: Final[Mapping[str, Callable[[str, Any], Iterator[tuple[str, str]]]]] = {
    "content_type": _as("Content-Type", _text),
    "method": _as("Upstash-Method", _method),
    "forward": _with_prefix("Upstash-Forward-"),
    "callback": _as("Upstash-Callback", _callback),
    "callback_headers": _with_prefix("Upstash-Callback-"),
    "failure_callback": _as("Upstash-Failure-Callback", _callback),
    "failure_callback_headers": _with_prefix("Upstash-Failure-Callback-"),
    "retries": _as("Upstash-Retries", _integer),
    "retry_delay": _as("Upstash-Retry-Delay", _text),
    "delay": _as("Upstash-Delay", _duration),
    "not_before": _as("Upstash-Not-Before", _instant),
    "deduplication_id": _as(DEDUPLICATION_ID, _deduplication_id),
    "content_based_deduplication": _content_based,
    "timeout": _as("Upstash-Timeout", _duration),
    "flow_control": _flow_control,
    "label": _as("Upstash-Label", _label),
    "redact": _redact,
    "headers": _pairs,
}
OPTION_NAMES: Final = tuple(_COMPILERS)
