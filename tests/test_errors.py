"""Errors carry their numbers, compose their text from them, survive pickling, and tell no secret."""

from __future__ import annotations

import pickle

import pytest

import dispatcher
from dispatcher import errors
from dispatcher.errors import (
    Attempt,
    ConfigError,
    DeliveryError,
    DispatcherError,
    Halted,
    MessageRejected,
    MessageTooLarge,
    QueueFull,
    QuotaExhausted,
)
from dispatcher.message import Endpoint, Message, Receipt

MESSAGE = Message("https://user:pass@example.com/hook?key=secret#part", "secret body")
TRIES = (Attempt(0.0, "503", 0.1), Attempt(1.0, "disconnected", 0.2))


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Each class stands in the drawing below its parent, and nothing else does."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        name = line.lstrip(" │├└─")
        if not name or not name[0].isupper() or ("──" not in line and name.split()[0] != "DispatcherError"):
            continue
        depth = (len(line) - len(name) - 4) // 4
        path[depth:] = [name.split()[0]]
        if depth:
            drawn[path[depth]] = path[depth - 1]
    actual = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, DispatcherError) and kind is not DispatcherError
    }
    assert drawn == actual


def test_a_delivery_error_says_why_how_certain_and_how_often() -> None:
    """One line: the reason, the certainty, the number of attempts and the last of them."""
    error = DeliveryError("no", message=MESSAGE, certainty="unknown", attempts=TRIES)
    assert str(error) == "no (unknown; 2 attempts, the last: disconnected)"
    assert str(DeliveryError("no", message=MESSAGE, certainty="not_sent")) == "no (not sent; 0 attempts)"


def test_a_wrong_setting_is_told_in_its_own_words() -> None:
    """The value that is not allowed; or, where it is not the value that is wrong, what is."""
    wrong = ConfigError("retry.base", -1, "allowed is a number")
    missing = ConfigError("token", None, "set QSTASH_TOKEN", problem="it is missing")
    assert str(wrong) == "retry.base: -1 is not allowed; allowed is a number"
    assert str(missing) == "token: it is missing; set QSTASH_TOKEN"
    assert (missing.field, missing.value, missing.allowed) == ("token", None, "set QSTASH_TOKEN")


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("limit.max_in_flight", 0, "allowed is 1 and more"),
        ConfigError("token", None, "set QSTASH_TOKEN", problem="it is missing"),
        QueueFull(3, 3, 10, 20),
        MessageTooLarge(5, 4),
        MessageRejected("no", status=400, message=MESSAGE, attempts=TRIES),
        Halted("no", status=401, since=3.0, message=MESSAGE),
        QuotaExhausted("no", reset_at=1e9, message=MESSAGE),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_keep_their_numbers_through_pickle(error: DispatcherError) -> None:
    """Process pools and task queues carry them."""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    state = {name: value for name, value in vars(error).items() if name != "message"}
    assert {name: vars(again)[name] for name in state} == state


def test_no_repr_tells_a_secret() -> None:
    """User information, query, fragment and body of a message stay out of every text."""
    texts = [repr(MESSAGE), repr(MessageRejected("no", status=400, message=MESSAGE))]
    for text in texts:
        for secret in ("pass", "secret", "part"):
            assert secret not in text
    assert repr(MESSAGE) == "<Message to 'https://example.com/hook'>"
    assert len(repr(Message("https://example.com/" + "x" * 1000))) < 120


def test_a_receipt_has_every_id() -> None:
    """One id, or one for each endpoint that took the message."""
    assert Receipt("m").message_ids == ("m",)
    endpoints = (
        Endpoint("https://a", "1"),
        Endpoint("https://b", None, error="down"),
        Endpoint("https://c", "3"),
    )
    assert Receipt(None, endpoints=endpoints).message_ids == ("1", "3")
    assert dispatcher.Receipt is Receipt
