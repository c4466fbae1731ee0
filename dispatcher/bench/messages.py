"""What the messages of a load are: bodies of a size or a range of sizes, queues, destinations. Pure.

Bodies are slices of one random text, so that making them costs next to nothing beside sending them.
"""

from __future__ import annotations

import random
import string
from itertools import count
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from dispatcher.message import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

DESTINATION: Final = "https://example.com/bench"
_LETTERS: Final = string.ascii_letters + string.digits
_SPREAD: Final = 65_536
_STRIDE: Final = 7_919
"""A prime: the slices wander over the whole text."""


class Mix(Struct, frozen=True):
    """What to send; the same seed makes the same messages."""

    body_least: int = 200
    """Bytes."""
    body_most: int = 200
    """Each size from the least on is equally likely."""
    queues: int = 0
    """FIFO queues, which take turns."""
    queue_share: float = 1.0
    """Of all messages that go to the queues, where there are any."""
    destinations: tuple[str, ...] = (DESTINATION,)
    """They take turns."""
    seed: int = 0

    def messages(self) -> Iterator[Message]:
        """Any number of them; what is slow to make is made at once, and not with the first one."""
        rng = random.Random(f"{self.seed}:bodies")
        text = "".join(rng.choices(_LETTERS, k=_SPREAD))
        return self._slices(rng, text * (2 + self.body_most // _SPREAD))

    def _slices(self, rng: random.Random, text: str) -> Iterator[Message]:
        least, most, destinations = self.body_least, self.body_most, self.destinations
        names = [f"bench-{number}" for number in range(self.queues)]
        share = self.queue_share if names else 0.0
        queued = 0
        for number in count():
            start = number * _STRIDE % _SPREAD
            size = least if least == most else rng.randint(least, most)
            queue = None
            if int((number + 1) * share) > queued:
                queue = names[queued % len(names)]
                queued += 1
            destination = destinations[number % len(destinations)]
            yield Message(destination, text[start : start + size], queue=queue)

    @property
    def words(self) -> str:
        """For people."""
        least, most = self.body_least, self.body_most
        parts = [f"bodies of {least:,}{f' to {most:,}' if most > least else ''} bytes"]
        if self.queues:
            share = "" if self.queue_share == 1.0 else f"{self.queue_share:.0%} of them "
            parts.append(f"{share}in {self.queues:,} queue{'s' if self.queues > 1 else ''}")
        if len(self.destinations) > 1:
            parts.append(f"to {len(self.destinations):,} destinations")
        return ", ".join(parts)
