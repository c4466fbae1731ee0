"""The seam for tracing: what a dispatcher lets an observer see, and where.

An observer stands around three steps, none of them below a message where nobody observes: what is handed in
(one message, or a run), what an outbox keeps, and each request. A message carries what was noted of it as its
`home`, which is none of the core's business. Nothing here knows who observes; `tracing` does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Protocol, TypeVar

from msgspec import UnsetType

from dispatcher.core.batch import Batch, Failure, Reply, Run
from dispatcher.delivery import Delivery, Home
from dispatcher.message import Message

if TYPE_CHECKING:
    from dispatcher.core.wire import Encoded

D = TypeVar("D", bound=Delivery)

Post = Callable[[Batch], Awaitable[Reply | Failure]]
"""Make one request of a batch."""
EncodeRun = Callable[[Iterable[Message], Run, int, int], Message | UnsetType]
"""See `Encoder.encode_run`."""


class Prepare(Protocol):
    """Check and encode one message, for a home, admitted at an instant; whether someone waits for it."""

    def __call__(self, message: Message, kind: type[D], home: Home, now: float, is_claimed: bool, /) -> D: ...


class Observer(Protocol):
    """What stands around a dispatcher's steps. Any thread may call what is about handing in."""

    def around_prepare(self, prepare: Prepare) -> Prepare:
        """Stand around one message's checking and encoding: in the task or thread of who hands it in."""
        ...

    def around_run(self, encode_run: EncodeRun) -> EncodeRun:
        """The same for the messages of a run."""
        ...

    def around_post(self, post: Post) -> Post:
        """Stand around each request, whatever it carries and however it ends."""
        ...

    def keep(self, message: Message, encoded: Encoded) -> tuple[Encoded, str]:
        """A message is accepted by an outbox: how it will travel, and what to keep with it."""
        ...

    def recall(self, delivery: Delivery, kept: str) -> None:
        """It is handed in at last, perhaps by another process."""
        ...
