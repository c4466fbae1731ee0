"""The bell that stores ring: it wakes who waits, and lets go of who is cancelled, even at once."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.outbox.waiting import Bell

pytestmark = pytest.mark.anyio
SECONDS = 10


async def test_who_waits_is_woken() -> None:
    """When something may be claimed now; not when it is due much later."""
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(0.0))
    await asyncio.sleep(0)
    bell.set(1e9)
    done, _ = await asyncio.wait([waiting], timeout=0)
    assert not done
    bell.set(0.0)
    await asyncio.wait_for(waiting, SECONDS)


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_is_not_lost_when_the_bell_rings(turns: int) -> None:
    """Whichever comes first, and however many turns of the loop lie between: the waiter ends."""
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(0.0))
    for _ in range(3):
        await asyncio.sleep(0)
    bell.set(1e9)
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    done, _ = await asyncio.wait([waiting], timeout=SECONDS)
    waiting.cancel()
    assert done, "the cancellation was lost"
    assert waiting.cancelled()
