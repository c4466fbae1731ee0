"""What running sidecars really export: scraped once, for every test that compares with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import pytest

from dispatcher.testing import local_upstream
from tests.sidecar.daemon_support import TOKEN, serving

if TYPE_CHECKING:
    from pathlib import Path


class Scrapes(NamedTuple):
    """The text of `/metrics`."""

    plain: str
    """Of a sidecar without an outbox."""
    durable: str
    """Of one with."""


@pytest.fixture(scope="session")
def scrapes(tmp_path_factory: pytest.TempPathFactory) -> Scrapes:
    """Two `dispatcher serve` after a few publishes, one of them refused by the service."""
    return asyncio.run(scrape(tmp_path_factory.mktemp("scrapes")))


async def scrape(folder: Path) -> Scrapes:
    """Run them, publish, and ask each for its metrics."""
    texts = []
    async with local_upstream(token=TOKEN, faults="poison_400=POISON") as upstream:
        for words in ((), ("--outbox", str(folder / "outbox.db"))):
            async with serving(*words, url=upstream.url) as sidecar:
                statuses = {body: (await sidecar.publish(body))[0] for body in ("hello", "POISON")}
                assert statuses == {"hello": 200, "POISON": 400}
                async with sidecar.session.get(f"{sidecar.admin}/metrics") as response:
                    assert response.status == 200
                    texts.append(await response.text())
    return Scrapes(*texts)
