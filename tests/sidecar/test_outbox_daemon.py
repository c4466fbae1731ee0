"""`dispatcher serve --outbox FILE` as real processes: killed, stopped, started again; its settings."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import orjson
import pytest

from dispatcher import Config
from dispatcher.errors import ConfigError
from dispatcher.sidecar.outbox_settings import OutboxSettings, outbox_settings
from dispatcher.sidecar.reload import change
from dispatcher.sidecar.settings import SidecarConfig
from dispatcher.testing import local_upstream
from tests.sidecar.daemon_support import TOKEN, environment, refused, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sidecar.daemon_support import Sidecar

NOWHERE = "http://127.0.0.1:1"
HOOK = "https://example.com/hook"
LINES = 3_000


async def keep(sidecar: Sidecar, text: bytes) -> list[str]:
    """Publish lines with `respond-async`: the ids."""
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": "application/x-ndjson",
        "Prefer": "respond-async",
    }
    async with sidecar.session.post(f"{sidecar.intake}/v2/batch", data=text, headers=headers) as response:
        return [orjson.loads(line)["messageId"] for line in (await response.read()).splitlines()]


@pytest.mark.anyio
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_what_was_acknowledged_is_delivered_once_by_the_next_process(
    tmp_path: Path, end: signal.Signals
) -> None:
    """Upstream down: 3,000 messages kept; killed or stopped; the next one delivers all, once, in order."""
    file = str(tmp_path / "outbox.db")
    text = b"".join(
        orjson.dumps({"destination": HOOK, "queue": f"q{n % 3}", "body": str(n)}) + b"\n"
        for n in range(LINES)
    )
    async with serving("--outbox", file, "--drain-within", "2", url=NOWHERE) as first:
        ids = await keep(first, text)
        assert len(set(ids)) == LINES
        assert all(each.startswith("out_") for each in ids)
        assert await first.health("/readyz") == 200
        first.signal(end)
        code = await first.ended()
        if end == signal.SIGTERM:
            assert code == 0, first.log
            assert f"{LINES} messages and 0 dead letters stay in {file}" in first.log
        assert TOKEN not in first.log
    async with local_upstream(token=TOKEN) as upstream:
        async with serving("--outbox", file, url=upstream.url) as second:
            await second.until(lambda: len(upstream.accepted()) == LINES)
            async with second.session.get(f"{second.admin}/outbox") as response:
                assert (await response.json())["recovered"] == LINES
            second.signal(signal.SIGTERM)
            assert await second.ended() == 0
            assert f"0 messages and 0 dead letters stay in {file}" in second.log
        bodies = [int(each.body or b"") for each in upstream.accepted()]
    assert sorted(bodies) == list(range(LINES))
    for queue in range(3):
        mine = [each for each in bodies if each % 3 == queue]
        assert mine == sorted(mine)


@pytest.mark.anyio
async def test_a_publish_has_the_services_id_and_a_stop_is_quick(tmp_path: Path) -> None:
    """Through real doors; and an upstream that hangs holds up the end no longer than `drain_within`."""
    file = str(tmp_path / "outbox.db")
    other = str(tmp_path / "other.db")
    async with local_upstream(token=TOKEN) as upstream, serving("--outbox", file, url=upstream.url) as one:
        status, answer = await one.publish("hello")
        assert (status, [answer["messageId"]]) == (200, list(upstream.accepted()[0].message_ids))
    async with (
        local_upstream(token=TOKEN, faults="hang_before=1") as upstream,
        serving("--outbox", other, "--drain-within", "1.5", url=upstream.url) as one,
    ):
        asked = asyncio.create_task(one.publish("kept"))
        await one.until(lambda: bool(upstream.requests))
        one.signal(signal.SIGTERM)
        status, answer = await asked
        assert (status, answer["messageId"][:4]) == (202, "out_")
        assert await one.ended() == 0, one.log
        assert f"1 messages and 0 dead letters stay in {other}" in one.log


@pytest.mark.anyio
async def test_a_file_is_opened_once_and_only_if_it_is_one(tmp_path: Path) -> None:
    """A second process ends with 2 and names the first one's admin listener; so does one with no outbox."""
    file = str(tmp_path / "outbox.db")
    async with serving("--outbox", file, url=NOWHERE) as first:
        code, log = await refused("--outbox", file, env=environment(NOWHERE))
        assert code == 2
        assert str(first.process.pid) in log
        assert first.admin in log
    (tmp_path / "other").write_text("no database at all, but long enough to be looked at" * 100)
    code, log = await refused("--outbox", str(tmp_path / "other"), env=environment(NOWHERE))
    assert (code, "outbox.file" in log) == (2, True)
    code, log = await refused("--outbox", str(tmp_path / "none" / "outbox.db"), env=environment(NOWHERE))
    assert (code, "outbox.file" in log) == (2, True)


# ------------------------------------------------------------------------------------------------- settings


def test_each_setting_comes_from_everywhere(tmp_path: Path) -> None:
    """Flag before environment before file before default; the origin is told."""
    (tmp_path / "d.toml").write_text('[outbox]\nfile = "a"\nmax_messages = 5\nrespond_after = 1\n')
    env = {"QSTASH_TOKEN": "t", "DISPATCHER_OUTBOX_MAX_MESSAGES": "6", "DISPATCHER_OUTBOX_RESPOND_AFTER": "2"}
    config = SidecarConfig.load(env=env, file=tmp_path / "d.toml", outbox_respond_after=3)
    assert config.outbox == OutboxSettings(file="a", max_messages=6, respond_after=3.0)
    origins = {path: origin.split()[0] for path, _, origin in config.rows() if path.startswith("outbox.")}
    assert len(origins) == len(outbox_settings())
    assert origins["outbox.file"] == "file"
    assert origins["outbox.max_messages"] == "environment"
    assert origins["outbox.respond_after"] == "flag"
    assert origins["outbox.synchronous"] == "default"


def test_the_library_leaves_the_section_alone(tmp_path: Path) -> None:
    """It belongs to the daemon, which knows its names; other unknown ones are mistakes for both."""
    (tmp_path / "d.toml").write_text('[outbox]\nfile = "a"\nnonsense = 1\n')
    env = {"QSTASH_TOKEN": "t", "DISPATCHER_OUTBOX_FILE": "x", "DISPATCHER_OUTBOX_FIEL": "x"}
    assert Config.load(env=env, file=tmp_path / "d.toml").token == "t"
    with pytest.raises(ConfigError, match="DISPATCHER_OUTBOX_FILE"):
        SidecarConfig.load(env=env)
    with pytest.raises(ConfigError, match="outbox"):
        SidecarConfig.load(env={"QSTASH_TOKEN": "t"}, file=tmp_path / "d.toml")
    with pytest.raises(ConfigError):
        Config.load(env={"QSTASH_TOKEN": "t", "DISPATCHER_OUTBOXES": "x"})


def test_only_the_wait_changes_without_a_restart() -> None:
    """SIGHUP takes `respond_after`, and refuses the rest by name."""
    now = SidecarConfig.load(env={"QSTASH_TOKEN": "t"}, outbox_file="a")
    wanted = SidecarConfig.load(
        env={"QSTASH_TOKEN": "t"}, outbox_file="b", outbox_respond_after=2, outbox_synchronous="off"
    )
    new = change(now, wanted)
    assert new.config.outbox == OutboxSettings(file="a", respond_after=2.0)
    assert [words.partition(" ")[0] for words in new.taken] == ["outbox.respond_after"]
    assert [words.partition(" ")[0] for words in new.refused] == ["outbox.file", "outbox.synchronous"]
