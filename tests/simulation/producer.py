"""How several messages are handed in together: as a run, while they are plain and there is room.

The steps of the runtime's `send_many`, by the core's parts that it uses; called by `world`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatcher.core.batch import Entry
from tests.core.known_run import KnownRun, known_run, offer_run

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterator

    from dispatcher.core.engine import Engine
    from dispatcher.core.wire import Encoder
    from dispatcher.message import Message
    from tests.simulation.scenario import Draft


def is_plain(one: Draft) -> bool:
    """It may be in a run."""
    message = one.message
    return isinstance(message.body, str) and not (
        message.queue or message.deduplication_id or message.deliver_within
    )


def next_run(
    engine: Engine, encoder: Encoder, drafts: deque[Draft], size: int, now: float
) -> tuple[KnownRun | None, list[int]]:
    """Offer a run of the first drafts, and take them away; the run, and the drafts' numbers.

    None if the first draft is not plain, or has no room.
    """
    taken: list[Draft] = []

    def messages() -> Iterator[Message]:
        while drafts:
            taken.append(drafts.popleft())
            yield taken[-1].message

    lanes, room = engine.lanes, engine.room
    columns = KnownRun([], [], [])
    bounds = min(size, lanes.max_messages), lanes.max_bytes - lanes.max_messages - 1
    most, most_bytes = room.reserve(*bounds)
    if most:
        encoder.encode_run(messages(), columns, most, most_bytes)
    room.release(most - len(columns), most_bytes - columns.size_bytes)
    odd = len(taken) - len(columns)
    assert 0 <= odd <= 1, "a run consumes what it does not take"
    if odd:
        drafts.appendleft(taken.pop())
    if not taken:
        return None, []
    until = now + engine.config.deliver_within
    pairs = zip(columns.messages, columns.items, columns.deduplication_ids, strict=True)
    run = known_run([Entry(message, item, None, one, True, True, now, until) for message, item, one in pairs])
    assert run.size_bytes == columns.size_bytes, "the bytes of a run are miscounted as it is encoded"
    offer_run(engine, run)
    return run, [draft.number for draft in taken]
