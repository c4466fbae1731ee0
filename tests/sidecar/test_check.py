"""`dispatcher check`: every effective setting with its origin, and what the upstream says."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import orjson
import pytest
from aiohttp import web

from dispatcher.config import Config, TransportSettings
from dispatcher.sidecar.probe import judge, probe
from dispatcher.sidecar.settings import every_setting
from dispatcher.testing import local_upstream
from tests.sidecar.daemon_support import PATIENCE_SECONDS, TOKEN, environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


async def check(*words: str, env: dict[str, str]) -> tuple[int, str, str]:
    """Run it: exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dispatcher", "check", *words),
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()


async def test_it_prints_every_setting_and_finds_the_upstream(tmp_path: Path) -> None:
    """Value and origin of each, no secret, one harmless question, exit 0."""
    file = tmp_path / "d.toml"
    file.write_text("[serve]\npatience = 12\ntokens = 'caller-secret'\n[queues.billing]\nstrict = true\n")
    async with local_upstream() as upstream:
        env = environment(upstream.url, DISPATCHER_RETRY_BASE="0.2")
        code, told, errors = await check("--config", str(file), "--port", "9000", env=env)
        asked = [(one.kind, one.status, one.items) for one in upstream.requests]
        assert upstream.accepted() == []
    assert (code, errors, asked) == (0, "", [("queues", 200, 0)])
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in told.splitlines()[:-1]}
    assert set(rows) == {one.path for one in every_setting()} | {
        "queues.billing.strict",
        "queues.billing.on_failure",
    }
    assert rows["serve.port"].split() == ["9000", "flag"]
    assert rows["serve.patience"].split() == ["12", "s", "file", str(file)]
    assert rows["retry.base"].split() == ["0.2", "s", "environment", "DISPATCHER_RETRY_BASE"]
    assert rows["token"].split() == ["***", "environment", "QSTASH_TOKEN"]
    assert rows["serve.tokens"].split() == ["***", "file", str(file)]
    assert rows["serve.proxy"].split() == ["all", "default"]
    assert told.splitlines()[-1] == f"upstream {upstream.url}: reachable (200: the token is accepted)"
    assert TOKEN not in told
    assert "caller-secret" not in told


async def test_a_refused_token_is_exit_1() -> None:
    """Said in words, without the token."""
    async with local_upstream() as upstream:
        code, told, _ = await check(env=environment(upstream.url, "wrong-token"))
    assert code == 1
    assert f"upstream {upstream.url}: token refused (401" in told
    assert "wrong-token" not in told


async def test_a_wrong_url_and_nobody_there_are_exit_1() -> None:
    """A path where no service is; a port where nobody listens."""
    async with local_upstream() as upstream:
        code, told, _ = await check(env=environment(f"{upstream.url}/nowhere"))
        assert code == 1
        assert "/nowhere: wrong URL (404" in told
    code, told, _ = await check(env=environment(upstream.url))
    assert code == 1
    assert f"upstream {upstream.url}: unreachable (" in told


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        ((), {"QSTASH_TOKEN": ""}, "token: it is missing"),
        ((), {"DISPATCHER_SERVE_PROT": "1"}, "did you mean `DISPATCHER_SERVE_PORT`?"),
        (("--workers", "2"), {}, "a queue keeps its order only inside one process"),
        (("--host", "0.0.0.0", "--serve-authentication", "none"), {}, "serve.authentication"),
        (("--port", "70000"), {}, "0 to 65,535"),
        (("--config", "/no/such/file"), {}, "cannot be read"),
    ],
)
async def test_a_wrong_configuration_is_exit_2(
    words: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    """What `serve` would refuse is refused here, before anybody is asked."""
    async with local_upstream() as upstream:
        code, told, errors = await check(*words, env=environment(upstream.url, **env))
        assert len(upstream.requests) == 0
    assert (code, told) == (2, "")
    assert said in errors


async def test_offline_asks_nobody() -> None:
    """The settings alone."""
    async with local_upstream() as upstream:
        code, told, _ = await check("--offline", env=environment(upstream.url))
        assert len(upstream.requests) == 0
    assert code == 0
    assert "reachable" not in told


# ------------------------------------------------------------------------------------------ what answers mean


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, b"[]", "reachable"),
        (200, b"<html>", "wrong URL"),
        (200, b'{"ok": true}', "wrong URL"),
        (301, b"", "wrong URL"),
        (401, b'{"error": "unauthorized"}', "token refused"),
        (403, b"", "token refused"),
        (404, b"404 page not found", "wrong URL"),
        (405, b"", "wrong URL"),
        (429, b'{"error": "slow down"}', "in trouble"),
        (500, b"", "in trouble"),
        (503, b"not json", "in trouble"),
    ],
)
def test_each_answer_has_a_meaning(status: int, body: bytes, verdict: str) -> None:
    """A status, and for a good one the form of the body."""
    finding = judge(status, body)
    assert finding.verdict == verdict
    assert finding.detail.startswith(str(status))
    assert finding.is_good == (verdict == "reachable")


def test_the_service_s_words_are_told_short_and_on_one_line() -> None:
    """A hostile text neither floods nor forges the output."""
    finding = judge(500, orjson.dumps({"error": "a\nb\x1b[2J" + "c" * 1_000}))
    assert finding.detail.startswith("500 a b [2Jccc")
    assert len(finding.detail) <= 210
    assert finding.detail.isprintable()


@pytest.fixture
async def stranger() -> AsyncIterator[str]:
    """A server that answers as its path says, and hangs where nothing is said."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/hang"):
            await asyncio.get_running_loop().create_future()
        if request.path.startswith("/long"):
            return web.Response(body=b"[" + b" " * 2_000_000)
        return web.Response(status=302, headers={"Location": "/v2/queues"})

    server = web.Server(answer, handler_cancellation=True)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    listener.close()
    server.pre_shutdown()
    await server.shutdown(0.1)


@pytest.mark.parametrize(
    ("path", "verdict", "words"),
    [
        ("/moved", "wrong URL", "302: a redirect, which is never followed"),
        ("/long", "wrong URL", "200 with a long answer"),
        ("/hang", "unreachable", "no answer within 0.3 s"),
    ],
)
async def test_a_stranger_is_no_service(stranger: str, path: str, verdict: str, words: str) -> None:
    """No redirect is followed, no endless answer read, no silence waited for."""
    config = Config(TOKEN, stranger + path, transport=TransportSettings(attempt_timeout=0.3))
    finding = await probe(config)
    assert finding.verdict == verdict
    assert finding.detail.startswith(words)
