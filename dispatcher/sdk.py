"""Other people's spellings of a message, read as they are: the official SDK's, and the service's own item.

Three readers: `message_from_sdk` for a `BatchRequest` or `BatchJsonRequest`, `message_from_item` for an
element of the array that `POST /v2/batch` takes, and `line_to_message` for one decoded line of an NDJSON
file, which may be either. They never change what they are given, never guess what a misspelt key meant (it
is refused, and the nearest right one named), and never show a body or a token in a text. Destinations, queues
and an item's headers are judged on admission by `core.wire`, as everywhere. Called by `Message.from_sdk`, by
the intake commands and by whoever migrates from the SDK.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, NoReturn

from dispatcher.checks import check_deduplication_id
from dispatcher.errors import MessageInvalid
from dispatcher.message import Message
from dispatcher.options import OPTION_NAMES, Options

if TYPE_CHECKING:
    from collections.abc import Iterable

TARGET_KEYS: Final = ("url", "url_group", "api")
ITEM_KEYS: Final = ("destination", "headers", "body", "body_base64", "queue")
# The SDK's `headers` are our `forward`; the id is a field of the message: options may be shared, ids not.
SDK_OPTION_KEYS: Final = tuple(name for name in OPTION_NAMES if name not in ("forward", "deduplication_id"))
FAILURE_KEY: Final = "_failure"
"""Beside a line that was not delivered: what is known of its failure. Accepted in a line, and ignored."""
RAW_KEY: Final = "_raw"
RAW_BASE64_KEY: Final = "_raw_base64"
"""The text, or bytes that are no text, of a line that could not be read: to be corrected, not to be sent."""
SDK_KEYS: Final = (*TARGET_KEYS, "queue", "body", "body_base64", "deduplication_id", *SDK_OPTION_KEYS)

_CHAT_ROUTE: Final = "/v1/chat/completions"
# What HTTP calls singleton fields: two values joined by a comma would be a third value that nobody gave.
_SINGLE_VALUED: Final = frozenset(
    {
        *("content-type", "upstash-method", "upstash-delay", "upstash-not-before", "upstash-retries"),
        *("upstash-retry-delay", "upstash-timeout", "upstash-callback", "upstash-failure-callback"),
        *("upstash-deduplication-id", "upstash-content-based-deduplication", "upstash-flow-control-key"),
    }
)


def message_from_sdk(request: Mapping[str, Any]) -> Message:
    """A batch request of the official SDK (`BatchRequest` or `BatchJsonRequest`) as a message.

    A body that is text, bytes or absent travels as it is; a dict, list, number or bool is written as JSON
    with `Content-Type: application/json` unless another is given, as `batch_json` would. `None` values are
    absent, as in the SDK. `body_base64` may stand in the place of `body`.

    Raises:
        MessageInvalid: An unknown key, not exactly one of `url`, `url_group`, `api`, or a wrong option.
    """
    _check_keys(_mapping("an SDK request", request), SDK_KEYS)
    destination, token = _target(request)
    options = {name: request[name] for name in SDK_OPTION_KEYS if request.get(name) is not None}
    forward = _forward(options.pop("headers", None), token)
    if forward is not None:
        options["forward"] = forward
    deduplication_id = request.get("deduplication_id")
    if deduplication_id is not None:
        check_deduplication_id(deduplication_id)
    message = Message(
        destination,
        options=Options(**options) if options else None,
        queue=_queue(request),
        deduplication_id=deduplication_id,
    )
    _set_sdk_body(message, request)
    return message


def message_from_item(item: Mapping[str, Any]) -> Message:
    """An element of the array that the service's `POST /v2/batch` takes, as a message.

    `queue` and `body` may be absent, `None` or `""`, which all mean none; a header's value may be a list of
    strings, as one SDK writes it. `body_base64` may stand in the place of `body`, for bytes.

    Raises:
        MessageInvalid: An unknown key, no destination, a body that is not a string, a wrong header value.
    """
    _check_keys(_mapping("an item", item), ITEM_KEYS)
    if item.get("destination") is None:
        raise MessageInvalid("`destination` is missing: a URL, a URL group's name, or a route like `api/llm`")
    body = item.get("body")
    if not isinstance(body, str | None):
        raise MessageInvalid(
            f"`body` is {_kind(body)}; in an item it is a string (JSON as its text, bytes as `body_base64`)"
        )
    return Message(
        item["destination"],
        _one_body(body, item.get("body_base64")),
        headers=_item_headers(item.get("headers")),
        queue=_queue(item),
    )


def line_to_message(obj: object) -> Message:
    """One decoded line of an NDJSON file: the service's own item, or an SDK request.

    Lines that `dispatcher send --failures` wrote are lines like any other: `_failure` is ignored.

    Raises:
        MessageInvalid: It is neither, both, or wrong in itself.
    """
    line = _mapping("a line", obj)
    if FAILURE_KEY in line:
        line = _without_failure(line)
    is_item = line.get("destination") is not None
    targets = [key for key in TARGET_KEYS if line.get(key) is not None]
    if is_item and targets:
        raise MessageInvalid(
            f"a line has `destination` (the service's item) or `{targets[0]}` (an SDK request), not both"
        )
    if targets:
        return message_from_sdk(line)
    if is_item or "destination" in line:
        return message_from_item(line)
    raise MessageInvalid(
        "the destination is missing: give `destination`, or one of `url`, `url_group`, `api`"
    )


def _without_failure(line: Mapping[str, Any]) -> Mapping[str, Any]:
    raw = next((key for key in (RAW_KEY, RAW_BASE64_KEY) if key in line), None)
    if raw is not None:
        raise MessageInvalid(
            f"the line could not be read before; put the corrected text of `{raw}` in its place"
        )
    return {key: value for key, value in line.items() if key != FAILURE_KEY}


def _mapping(what: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise MessageInvalid(f"{what} is a JSON object, not {_kind(value)}")
    return value


def _check_keys(given: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    # One set operation on the good path; the words are worked out only if something is wrong.
    if not given.keys() <= set(allowed):
        _refuse_key(next(key for key in given if key not in allowed), allowed)


def _refuse_key(key: object, allowed: Iterable[str]) -> NoReturn:
    near = get_close_matches(key, allowed, n=2) if isinstance(key, str) else []
    hint = (
        f"did you mean {' or '.join(f'`{name}`' for name in near)}?"
        if near
        else f"known: {', '.join(allowed)}"
    )
    raise MessageInvalid(f"the key {key!r} is unknown; {hint}")


def _target(request: Mapping[str, Any]) -> tuple[str, str | None]:
    """The destination, and the provider's token if it has one."""
    given = [key for key in TARGET_KEYS if request.get(key) is not None]
    if len(given) != 1:
        had = " and ".join(f"`{key}`" for key in given) or "none of them"
        raise MessageInvalid(f"exactly one of `url`, `url_group`, `api` is wanted, this has {had}")
    if given == ["api"]:
        return _api_target(request["api"])
    destination: str = request[given[0]]
    return destination, None


def _api_target(api: Any) -> tuple[str, str | None]:
    if not isinstance(api, Mapping) or api.get("name") != "llm":
        raise MessageInvalid('`api` is wanted as {"name": "llm"}, with or without a `provider`')
    _check_keys(api, ("name", "provider"))
    provider = api.get("provider")
    if provider is None:
        return "api/llm", None
    base_url, token = (_provider_text(provider, name) for name in ("base_url", "token"))
    return base_url + _CHAT_ROUTE, token


def _provider_text(provider: Any, name: str) -> str:
    value = provider.get(name) if isinstance(provider, Mapping) else getattr(provider, name, None)
    if not isinstance(value, str) or not value:
        raise MessageInvalid(f"`api`: the provider's `{name}` is wanted as a non-empty str")
    return value


def _forward(headers: Any, token: str | None) -> Any:
    """The SDK's `headers`, with the provider's token in the place of an `Authorization` of their own."""
    if not isinstance(headers, Mapping | None):
        raise MessageInvalid(f"`headers` is {_kind(headers)}: an object of names and strings is wanted")
    if token is None:
        return headers
    others = {
        name: value
        for name, value in (headers or {}).items()
        if str(name).lower().removeprefix("upstash-forward-") != "authorization"
    }
    return {**others, "Authorization": f"Bearer {token}"}


def _set_sdk_body(message: Message, request: Mapping[str, Any]) -> None:
    body = request.get("body")
    if isinstance(body, dict | list | tuple | int | float):  # bool is an int
        if request.get("body_base64") is not None:
            raise MessageInvalid("`body` and `body_base64` exclude each other")
        message.json = body
    elif isinstance(body, str | bytes | bytearray | memoryview | None):
        message.body = _one_body(body, request.get("body_base64"))
    else:
        raise MessageInvalid(f"`body` is {_kind(body)}: text, bytes, or what JSON can say is wanted")


def _one_body(body: Any, body_base64: Any) -> Any:
    """What travels: `None` for an empty text, as on the service's own wire."""
    if body_base64 is None:
        return None if body == "" else body
    if body not in (None, ""):
        raise MessageInvalid("`body` and `body_base64` exclude each other")
    if not isinstance(body_base64, str):
        raise MessageInvalid(f"`body_base64` is {_kind(body_base64)}: a string is wanted")
    try:
        return base64.b64decode(body_base64, validate=True) or None
    except (binascii.Error, ValueError):  # ValueError: a character outside ASCII
        raise MessageInvalid("`body_base64` is not base64 (RFC 4648, with padding, no line breaks)") from None


def _queue(given: Mapping[str, Any]) -> Any:
    queue = given.get("queue")
    return None if queue == "" else queue


def _item_headers(headers: Any) -> dict[str, str] | None:
    if headers is None:
        return None
    if not isinstance(headers, Mapping):
        raise MessageInvalid(f"`headers` is {_kind(headers)}: an object of names and strings is wanted")
    single: dict[str, str] = {}
    for name, value in headers.items():
        if isinstance(value, list | tuple):
            if value:
                single[name] = _joined(name, value)
        else:
            single[name] = value
    return single or None


def _joined(name: Any, values: list[Any] | tuple[Any, ...]) -> str:
    if any(not isinstance(value, str) for value in values):
        raise MessageInvalid(f"`{name}`: a header's value is a string or an array of strings")
    if len(values) > 1 and str(name).lower() in _SINGLE_VALUED:
        raise MessageInvalid(f"`{name}`: {len(values)} values; this header has exactly one")
    return ", ".join(values)


def _kind(value: object) -> str:
    """A value's JSON word, for people who look at a file and not at Python."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "a boolean"
    names = ((dict, "an object"), (list, "an array"), (str, "a string"), (int | float, "a number"))
    return next((word for kind, word in names if isinstance(value, kind)), type(value).__name__)
