"""Asks a local upstream in another process: what it accepted, in order; and creates its URL groups.

The client's half of `inspection`, for `dispatcher demo` and for tests that run `dispatcher dev`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

ROWS_A_REQUEST: Final = 5_000


class UpstreamClient:
    """One session with a local upstream; use it as an asynchronous context manager.

    Raises:
        aiohttp.ClientError: It cannot be reached, or answers with an error.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}"}, raise_for_status=True
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def create_group(self, name: str, endpoints: Mapping[str, str]) -> None:
        """A URL group of these endpoints, by name."""
        body = {"endpoints": [{"name": each, "url": url} for each, url in endpoints.items()]}
        async with self._session.post(f"{self._url}/v2/topics/{name}/endpoints", json=body):
            pass

    async def summary(self) -> dict[str, Any]:
        """What was accepted and how often, the requests, the faults injected."""
        async with self._session.get(f"{self._url}/dispatcher-dev/summary") as response:
            summary: dict[str, Any] = orjson.loads(await response.read())
        return summary

    async def accepted(self) -> list[dict[str, Any]]:
        """Every message it accepted, in the order of acceptance."""
        rows: list[dict[str, Any]] = []
        while True:
            after = rows[-1]["seq"] if rows else -1
            place = f"{self._url}/dispatcher-dev/accepted?after={after}&limit={ROWS_A_REQUEST}"
            async with self._session.get(place) as response:
                lines = (await response.read()).splitlines()
            rows.extend(orjson.loads(line) for line in lines)
            if len(lines) < ROWS_A_REQUEST:
                return rows
