"""A real Prometheus on a free port, with the project's rules in quick motion, asked over its HTTP API.

In quick motion: every duration of the rules (`for`, ranges) is divided by `SPEED`, as are the two thresholds
that are ages; everything else of them is as it is kept. What a rule says about 10 minutes shows in 6 seconds.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import yaml

from tests.deploy.promtool import PROMETHEUS, RULES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

SPEED: Final = 100
SCRAPE_SECONDS: Final = 0.4
"""Also what a scrape may take; a busy machine is not to make one fail."""
EVALUATION_SECONDS: Final = 0.25
UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
AGES: Final = ("dispatcher:threshold:message_age_seconds", "dispatcher:threshold:outbox_age_seconds")
PATIENCE: Final = 30.0
_DURATION: Final = re.compile(r"(?<=\[)(\d+)([smhd])(?=\])|(?<=offset )(\d+)([smhd])\b")
_ADDRESS: Final = re.compile(r'msg="Listening on" address=(\S+)')


def quick(duration: str, speed: int = SPEED) -> str:
    """A duration of one unit, divided."""
    return f"{int(duration[:-1]) * UNITS[duration[-1]] * 1_000 // speed}ms"


def quick_rules(text: str, speed: int = SPEED) -> str:
    """A file of rules in quick motion."""
    document = yaml.safe_load(text)
    for rule in [rule for group in document["groups"] for rule in group["rules"]]:
        rule["expr"] = _DURATION.sub(lambda found: quick(found[0], speed), rule["expr"])
        if "for" in rule:
            rule["for"] = quick(rule["for"], speed)
        if rule.get("record") in AGES:
            rule["expr"] = f"({rule['expr']}) / {speed}"
    return str(yaml.safe_dump(document, sort_keys=False))


class Prometheus:
    """One that runs.

    Args:
        targets: The file in which it looks for them.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession, targets: Path) -> None:
        self.url = url
        self._session = session
        self._targets = targets

    def scrape(self, addresses: Mapping[str, str]) -> None:
        """Scrape these from now on: admin listeners' URLs by the name that becomes `instance`."""
        found = [
            {"targets": [url.removeprefix("http://")], "labels": {"instance": name}}
            for name, url in addresses.items()
        ]
        partial = self._targets.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        partial.replace(self._targets)

    async def ask(self, path: str, **query: Any) -> Any:
        """The data of an answer of its API."""
        async with self._session.get(f"{self.url}/api/v1/{path}", params=query) as response:
            answer = await response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    async def value(self, expr: str) -> float | None:
        """Of an expression that gives one, now; none if it gives nothing."""
        result = (await self.ask("query", query=expr))["result"]
        assert len(result) <= 1, f"{expr} gives {len(result)} values"
        return float(result[0]["value"][1]) if result else None

    async def firing(self) -> set[tuple[str, str]]:
        """Instance and alert of what fires now; an alert without an instance has an empty one."""
        alerts = (await self.ask("alerts"))["alerts"]
        return {
            (one["labels"].get("instance", ""), one["labels"]["alertname"])
            for one in alerts
            if one["state"] == "firing"
        }


@asynccontextmanager
async def running_prometheus(folder: Path) -> AsyncIterator[Prometheus]:
    """A Prometheus with an empty store; ended with the context."""
    assert PROMETHEUS is not None
    for path in RULES:
        (folder / path.name).write_text(quick_rules(path.read_text(encoding="utf-8")))
    targets, configuration = folder / "targets.json", folder / "prometheus.yml"
    targets.write_text("[]")
    configuration.write_text(
        yaml.safe_dump(
            {
                "global": {
                    "scrape_interval": f"{round(SCRAPE_SECONDS * 1_000)}ms",
                    "evaluation_interval": f"{round(EVALUATION_SECONDS * 1_000)}ms",
                },
                "rule_files": [path.name for path in RULES],
                "scrape_configs": [
                    {"job_name": "dispatcher", "file_sd_configs": [{"files": [targets.name]}]},
                ],
            }
        )
    )
    process = await asyncio.create_subprocess_exec(
        PROMETHEUS,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    draining: asyncio.Task[bytes] | None = None
    try:
        address = await asyncio.wait_for(_address(process.stderr), PATIENCE)
        draining = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as session:
            yield Prometheus(f"http://{address}", session, targets)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if draining is not None:
            await draining


async def _address(log: asyncio.StreamReader) -> str:
    """Where it listens, as its log says, once it has read its configuration."""
    address, said = "", b""
    async for line in log:
        said += line
        found = _ADDRESS.search(line.decode())
        address = found[1] if found is not None else address
        if address and b"Server is ready to receive web requests" in said:
            return address
    raise AssertionError(f"Prometheus ended: {said.decode(errors='replace')[-2_000:]}")
