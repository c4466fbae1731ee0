"""Deduplication ids: drawn on opening, never shared between processes."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from dispatcher import Config, Dispatcher, Message
from dispatcher.identity import id_source
from dispatcher.testing import ScriptedTransport

if TYPE_CHECKING:
    from collections.abc import Callable


def ids_of_one_dispatcher() -> list[str]:
    """Open a dispatcher, send ten messages, return the ids they carried."""

    async def send() -> list[str]:
        transport = ScriptedTransport()
        async with Dispatcher(Config(token="t"), transport=transport) as dispatcher:
            await dispatcher.send_many(Message("https://example.com/x", body=str(n)) for n in range(10))
        items = [item for batch in transport.batches for item in batch]
        return [item["headers"]["Upstash-Deduplication-Id"] for item in items]

    return asyncio.run(send())


def in_child(work: Callable[[], list[str]]) -> list[str]:
    """What `work` returns in a forked child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, "\n".join(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said.split()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forked_children_share_no_id() -> None:
    """A preloaded module forked twice: three processes, thirty different ids."""
    families = [in_child(ids_of_one_dispatcher), in_child(ids_of_one_dispatcher), ids_of_one_dispatcher()]
    assert [len(ids) for ids in families] == [10, 10, 10]
    assert len({one for ids in families for one in ids}) == 30


def test_two_dispatchers_share_no_id() -> None:
    """In one process neither."""
    assert not set(ids_of_one_dispatcher()) & set(ids_of_one_dispatcher())


def test_ids_are_what_the_service_takes() -> None:
    """No `:` and no blank; 128 random bits in hexadecimal, and a counter."""
    first, second = (draw() for draw in [id_source()] * 2)
    opening, _, number = first.partition("-")
    assert (len(opening), int(opening, 16) >= 0, number) == (32, True, "000")
    assert second == f"{opening}-001"
