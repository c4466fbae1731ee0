"""`Prefer: wait=N`: a caller's own patience, for room and for confirmation, where it is the shorter one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
import pytest

from dispatcher.sidecar.dialect import Dialect
from dispatcher.testing import ScriptedTransport
from tests.sidecar.support_intake import Answer, sidecar, until

if TYPE_CHECKING:
    from tests.sidecar.support_intake import Sidecar

pytestmark = pytest.mark.anyio

URL = "https://example.com/hook"
WAIT = ("Prefer", "wait=1")
ITEM = orjson.dumps({"destination": URL, "body": "x"})
NDJSON = ("Content-Type", "application/x-ndjson")


async def ask_every_way(one: Sidecar) -> list[Answer]:
    """A publish, one that goes alone, an enqueue, a late body, a batch and a stream, all in a hurry."""
    late = await one.connect()
    await late.begin(f"/v2/publish/{URL}", [WAIT])
    await late.chunk(b"x")
    await late.chunk(b"")
    return list(
        await asyncio.gather(
            one.ask(f"/v2/publish/{URL}", b"x", [WAIT]),
            one.ask(f"/v2/publish/{URL}", b"\xff", [WAIT]),
            one.ask(f"/v2/enqueue/q/{URL}", b"x", [WAIT]),
            late.answer(),
            one.ask("/v2/batch", b"[" + ITEM + b"]", [WAIT]),
            one.ask("/v2/batch", ITEM + b"\n", [WAIT, NDJSON]),
        )
    )


async def test_confirmation_within_the_callers_patience() -> None:
    """504 with the certainty when it ends, by every way in; who did not ask for it waits on."""
    transport = ScriptedTransport()
    async with sidecar(transport) as one:
        transport.hold()
        patient = asyncio.create_task(one.publish(URL))
        started = asyncio.get_running_loop().time()
        answers = await ask_every_way(one)
        took = asyncio.get_running_loop().time() - started
        assert [one.json.get("status", one.status) for one in answers] == [504] * 6
        assert {one.json["certainty"] for one in answers} <= {"unknown", "not_sent"}
        assert 0.9 < took < 5
        assert not patient.done()
        transport.release()
        assert (await patient).status == 200


async def test_room_within_the_callers_patience() -> None:
    """429 where there was none until it ended, by every way in."""
    transport = ScriptedTransport()
    async with sidecar(transport, queue_max_messages=1) as one:
        transport.hold()
        first = asyncio.create_task(one.publish(URL))
        await until(lambda: one.dispatcher.statistics().held == 1)
        started = asyncio.get_running_loop().time()
        answers = await ask_every_way(one)
        took = asyncio.get_running_loop().time() - started
        assert [one.json.get("status", one.status) for one in answers] == [429] * 6
        assert 0.9 < took < 5
        transport.release()
        assert (await first).status == 200


async def test_it_goes_no_further() -> None:
    """Who is answered in time gets the usual answer, and the upstream never hears of it."""
    transport = ScriptedTransport()
    async with sidecar(transport) as one:
        assert [answer.status for answer in await ask_every_way(one)] == [200] * 6
    assert "prefer" not in f"{transport.singles} {transport.batches}".lower()


@pytest.mark.parametrize(
    ("lines", "wait"),
    [
        (["wait=10"], 10),
        (["WAIT = 10"], 10),
        (['wait="10"'], 10),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10;x=y, wait=5"], 10),
        (["wait=24"], 24),
        (["wait=25"], None),
        (["wait=99999999999999999999"], None),
        (["wait=0"], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=ten"], None),
        (["wait"], None),
        (["await=10"], None),
        (["x=wait=10"], None),
        ([], None),
    ],
)
def test_what_is_understood(lines: list[str], wait: float | None) -> None:
    """Whole seconds below the usual time; whatever else it is, it is left unheard."""
    assert Dialect(1_000, 25).wait_of(lines) == wait
