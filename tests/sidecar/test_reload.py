"""SIGHUP: what a running daemon takes over from its files, what it refuses aloud, and that it goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from typing import TYPE_CHECKING, Any, cast

import pytest

from dispatcher.sidecar.reload import CHANGEABLE, change
from dispatcher.sidecar.settings import ServeSettings, SidecarConfig, every_setting
from dispatcher.testing import local_upstream
from tests.sidecar.daemon_support import environment, serving, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sidecar.daemon_support import Sidecar

OLD, NEW = "old-token-1", "new-token-2"
TOKEN = {"QSTASH_TOKEN": OLD}


def load(**given: Any) -> SidecarConfig:
    return SidecarConfig.load(env=TOKEN, **given)


# -------------------------------------------------------------------------------------------- what may change


def test_bounds_and_log_are_taken_and_the_rest_is_refused() -> None:
    """Each by its name, with both values; what was refused keeps its old one."""
    now = load()
    wanted = load(serve_patience=5, serve_log_level="debug", serve_port=1, batch_linger=7)
    new = change(now, wanted)
    assert new.taken == ("serve.patience from 30 to 5", "serve.log_level from info to debug")
    assert new.refused == ("batch.linger from 0.01 to 7", "serve.port from 8090 to 1")
    assert new.config.serve == dataclasses.replace(now.serve, patience=5.0, log_level="debug")
    assert new.config.dispatcher == now.dispatcher
    assert new.config.origins["serve.patience"] == "flag"
    assert new.config.origins["serve.port"] == "default"
    assert not new.has_new_token


def test_a_new_token_is_taken_and_not_shown() -> None:
    """The upstream's, and with it what callers present; secrets are named, their values are not."""
    new = change(load(), SidecarConfig.load(env={"QSTASH_TOKEN": NEW}))
    assert (new.taken, new.refused, new.has_new_token) == (("token",), (), True)
    assert (new.config.dispatcher.token, new.config.tokens) == (NEW, (NEW,))
    given = {**TOKEN, "DISPATCHER_SERVE_TOKENS": NEW}
    new = change(load(), SidecarConfig.load(env=given))
    assert (new.taken, new.refused, new.has_new_token) == (("serve.tokens",), (), False)
    assert (new.config.dispatcher.token, new.config.tokens) == (OLD, (NEW,))


def test_a_tokens_file_with_another_content_is_a_change(tmp_path: Path) -> None:
    """Though the setting that names it is the same."""
    file = tmp_path / "tokens"
    write(file, "one\n")
    now = load(serve_tokens_file=str(file))
    write(file, "two\n")
    new = change(now, load(serve_tokens_file=str(file)))
    assert new.taken == ("serve.tokens_file: the tokens in it",)
    assert new.config.tokens == ("two",)


def test_nothing_new_changes_nothing() -> None:
    """Not even the object's value."""
    new = change(load(), load())
    assert (new.taken, new.refused, new.config) == ((), (), load())


def test_another_queue_is_refused(tmp_path: Path) -> None:
    """A lane that is in use cannot change its rules."""
    file = tmp_path / "d.toml"
    write(file, "[queues.billing]\nstrict = true\n")
    assert change(load(), load(file=file)).refused == ("queues",)


def test_where_it_listens_never_changes() -> None:
    """What the sockets were built from is not among what may change; the names are real."""
    assert {one.path for one in every_setting()} >= CHANGEABLE
    fixed = {f"serve.{one.name}" for one in dataclasses.fields(ServeSettings)} - CHANGEABLE
    assert fixed == {
        *("serve.host", "serve.port", "serve.socket", "serve.admin_host", "serve.admin_port"),
        *("serve.authentication", "serve.workers", "serve.tracing"),
    }


# --------------------------------------------------------------------------------------------- a real process


@pytest.mark.anyio
async def test_a_replaced_token_is_used_at_once(tmp_path: Path) -> None:
    """What is held leaves with it, the proxy uses it, callers must present it."""
    file = tmp_path / "token"
    env = environment(None, None, DISPATCHER_TOKEN_FILE=write(file, f"{OLD}\n"))
    async with (
        local_upstream(token=OLD) as upstream,
        serving(env=env | {"QSTASH_URL": upstream.url}) as sidecar,
    ):
        first = await sidecar.publish("before", token=OLD)
        upstream.set_token(NEW)
        held = asyncio.create_task(sidecar.publish("held", token=OLD))
        await sidecar.said("refuses this token")
        write(file, f"{NEW}\n")
        sidecar.signal(signal.SIGHUP)
        assert (await held)[0] == first[0] == 200
        assert (await sidecar.publish("after", token=NEW))[0] == 200
        assert (await sidecar.publish("stranger", token=OLD))[0] == 401
        url = f"{sidecar.intake}/v2/queues"
        async with sidecar.session.get(url, headers={"Authorization": f"Bearer {NEW}"}) as response:
            assert response.status == 200
        sidecar.signal(signal.SIGTERM)
        assert await sidecar.ended() == 0
    assert "SIGHUP: changed: token" in sidecar.log
    assert OLD not in sidecar.log
    assert NEW not in sidecar.log


@pytest.mark.anyio
async def test_bounds_change_under_load_and_what_cannot_is_told(tmp_path: Path) -> None:
    """On a connection that is already open, while publishes run: none of them fails."""
    file = tmp_path / "d.toml"
    write(file, "[serve]\nmax_body_bytes = 100\n")
    async with (
        local_upstream(faults="latency=50ms") as upstream,
        serving("--config", str(file), url=upstream.url) as sidecar,
    ):
        assert (await sidecar.publish("x" * 101))[0] == 413
        load = [asyncio.create_task(sidecar.publish(str(number))) for number in range(200)]
        write(file, "[serve]\nmax_body_bytes = 200\nhost = '0.0.0.0'\n[batch]\nmax_messages = 7\n")
        sidecar.signal(signal.SIGHUP)
        await sidecar.said("SIGHUP: changed: serve.max_body_bytes from 100 to 200")
        assert {status for status, _ in await asyncio.gather(*load)} == {200}
        assert (await sidecar.publish("x" * 101))[0] == 200
        assert (await sidecar.publish("x" * 201))[0] == 413
        await sidecar.said("SIGHUP: refused: batch.max_messages from 100 to 7; that needs a restart")
        await sidecar.said("SIGHUP: refused: serve.host from 127.0.0.1 to 0.0.0.0; that needs a restart")


async def status(sidecar: Sidecar) -> dict[str, Any]:
    async with sidecar.session.get(f"{sidecar.admin}/status") as response:
        return cast("dict[str, Any]", await response.json())


async def holds(sidecar: Sidecar, messages: int) -> None:
    """Wait until so many messages are held."""
    async with asyncio.timeout(10):
        while (await status(sidecar))["held"]["messages"] != messages:
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_larger_room_lets_in_who_waited(tmp_path: Path) -> None:
    """The bounds of what is held change where it is held: callers that wait for room are served at once."""
    file = tmp_path / "d.toml"
    write(file, "[queue]\nmax_messages = 3\n[limit]\nmax_in_flight = 8\n")
    async with (
        local_upstream(faults="latency=1h") as upstream,
        serving("--config", str(file), url=upstream.url) as sidecar,
    ):
        load = [asyncio.create_task(sidecar.publish(str(number))) for number in range(8)]
        await holds(sidecar, 3)
        write(file, "[queue]\nmax_messages = 5\n[limit]\nmax_in_flight = 1\n")
        sidecar.signal(signal.SIGHUP)
        await sidecar.said("queue.max_messages from 3 to 5")
        await holds(sidecar, 5)
        assert (await status(sidecar))["in_flight"]["limit_max"] == 1
        for each in load:
            each.cancel()
        await asyncio.gather(*load, return_exceptions=True)


@pytest.mark.anyio
async def test_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    """It is told, the daemon serves on, and the next good one counts again, log level and all."""
    file = tmp_path / "d.toml"
    write(file, "[serve]\nmax_body_bytes = 100\n")
    async with local_upstream() as upstream, serving("--config", str(file), url=upstream.url) as sidecar:
        for broken, words in (
            ("[serve", "wanted is a TOML file"),
            ("[serve]\nno_such = 1\n", "serve.no_such"),
        ):
            write(file, broken)
            sidecar.signal(signal.SIGHUP)
            await sidecar.said(words)
        assert sidecar.log.count("SIGHUP: nothing is changed: ") == 2
        assert (await sidecar.publish("x" * 101))[0] == 413
        write(file, "[serve]\nmax_body_bytes = 1000\nlog_level = 'error'\n")
        sidecar.signal(signal.SIGHUP)
        async with asyncio.timeout(10):
            while (await sidecar.publish("x" * 101))[0] != 200:
                await asyncio.sleep(0.01)
        sidecar.signal(signal.SIGTERM)
        assert await sidecar.ended() == 0
    assert "SIGTERM" not in sidecar.log
