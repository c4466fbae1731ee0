"""What the demonstration sends: every kind of message, and what must become of each.

The same number gives the same messages. Called by `demo`; `audit` judges by what stands in `Sent`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dispatcher.cli.audit import Sent
from dispatcher.message import Message
from dispatcher.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUES: Final = 4
GROUP: Final = "demo-subscribers"
SUBSCRIBERS: Final = {name: f"https://example.com/subscriber/{name}" for name in ("a", "b")}
POISON: Final = "POISON-BODY"
"""A body with this word makes the upstream refuse its whole request with 400."""
POISON_500: Final = "POISON-FIVE-HUNDRED"
"""The same with 500, for ever: what fails together has to be halved to find it."""
SENDS_POISON_500: Final = True
"""Whether the chaos has such bodies."""
POISON_EVERY: Final = 2_000
POISON_500_EVERY: Final = 20_000
POISON_500_WITHIN: Final = 4.0
"""Seconds after which a body that always draws 500 is given up."""
_OPTIONS: Final = Options(retries=3, forward={"X-Demo": "1"})


def build(number: int, *, poison: bool = True, poison_500: bool = False) -> list[Sent]:
    """URLs, a URL group, FIFO queues, unicode, bytes that are no text, and some poison."""
    return list(_generate(number, poison=poison, poison_500=poison_500))


def _generate(number: int, *, poison: bool, poison_500: bool) -> Iterator[Sent]:
    places = [0] * QUEUES
    for index in range(number):
        if poison and index % POISON_EVERY == POISON_EVERY // 2:
            yield Sent(Message("https://example.com/poisoned", f"{index} {POISON}"), 0, is_poisoned=True)
        elif poison_500 and index % POISON_500_EVERY == POISON_EVERY + 1:
            body = f"{index} {POISON_500}"
            message = Message("https://example.com/poisoned", body, deliver_within=POISON_500_WITHIN)
            yield Sent(message, 0, is_poisoned=True)
        elif index % 400 != 7 and index % 20 < 6:
            queue = index % QUEUES
            yield Sent(
                Message("https://example.com/ordered", f"{index}", queue=f"demo-{queue}"), places[queue]
            )
            places[queue] += 1
        else:
            yield Sent(_unordered(index), 0)


def _unordered(index: int) -> Message:
    kind = index % 20
    if index % 400 == 7:
        return Message("https://example.com/binary", b"\xff\xfe" + index.to_bytes(4, "big"))
    if kind < 8:
        return Message(GROUP, f'{{"event": {index}}}', options=_OPTIONS)
    if kind < 10:
        return Message("https://example.com/unicode", f"{index} — grüße, 世界, 🎉")
    return Message(f"https://example.com/hooks/{index % 7}", f'{{"order": {index}}}', options=_OPTIONS)
