"""`dispatcher serve --outbox redis://…` as real processes beside a real redis-server; its settings."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import orjson
import pytest

from dispatcher.cli import outbox as outbox_command
from dispatcher.errors import ConfigError
from dispatcher.sidecar.outbox_settings import OutboxSettings
from dispatcher.sidecar.redis_url import put_together
from dispatcher.sidecar.reload import change
from dispatcher.sidecar.settings import SidecarConfig
from dispatcher.testing import local_upstream
from tests.outbox.redis_support import Server, running
from tests.sidecar.daemon_support import TOKEN, environment, refused, serving
from tests.sidecar.test_check import check
from tests.sidecar.test_outbox_daemon import HOOK, NOWHERE, keep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.sidecar.daemon_support import Sidecar

PASSWORD = "secret/of:the@fleet"
QUOTED = "secret%2Fof%3Athe%40fleet"
SHORT = ("--outbox-lease", "3", "--transport-attempt-timeout", "0.5")
LINES = 400


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A Redis of the test's own."""
    with running(tmp_path) as made:
        yield made


async def published(sidecar: Sidecar, status: int) -> None:
    """Publish until the answer is this one; then another has the same."""
    async with asyncio.timeout(15):
        while (await sidecar.publish())[0] != status:
            await asyncio.sleep(0.05)


@pytest.mark.anyio
async def test_a_publish_goes_through_redis_and_waits_out_its_absence(server: Server) -> None:
    """Redis away at the start: waited for. There: 200 with the service's id. Away again: 503, then 200."""
    server.kill()
    async with (
        local_upstream(token=TOKEN) as upstream,
        serving("--outbox", server.url, url=upstream.url, ready=False) as sidecar,
    ):
        await sidecar.said("it is waited for")
        assert not sidecar.intake
        server.start()
        await sidecar.until(lambda: bool(sidecar.intake))
        status, answer = await sidecar.publish("hello")
        assert (status, [answer["messageId"]]) == (200, list(upstream.accepted()[0].message_ids))
        server.kill()
        await published(sidecar, 503)
        async with asyncio.timeout(5):
            while await sidecar.health("/readyz") != 503:
                await asyncio.sleep(0.02)
        server.start()
        await published(sidecar, 200)
        sidecar.signal(signal.SIGTERM)
        assert await sidecar.ended() == 0, sidecar.log
        assert f"0 messages and 0 dead letters stay in {server.url}" in sidecar.log


@pytest.mark.anyio
async def test_an_outbox_of_another_kind_is_refused(server: Server) -> None:
    """Exit code 1, so that it is tried again: what a Redis has may change, as in a failover."""
    server.client.hset("{dispatcher:default}:meta", mapping={"form": "99", "shards": "32"})
    code, log = await refused("--outbox", server.url, env=environment(NOWHERE))
    assert (code, "outbox.file" in log, "form 99" in log) == (1, True, True), log


@pytest.mark.anyio
async def test_a_stop_ends_the_waiting_for_redis(tmp_path: Path) -> None:
    """SIGTERM before there ever was a Redis: exit code 0, nothing was accepted."""
    async with serving("--outbox", f"unix://{tmp_path}/none", url=NOWHERE, ready=False) as sidecar:
        await sidecar.said("it is waited for")
        sidecar.signal(signal.SIGTERM)
        assert await sidecar.ended() == 0, sidecar.log


@pytest.mark.anyio
async def test_what_a_killed_sidecar_held_is_delivered_by_the_other(server: Server) -> None:
    """Two on one Redis; the one without an upstream is killed: after its lease the other has sent it all."""
    text = b"".join(
        orjson.dumps({"destination": HOOK, "queue": f"q{n % 40}", "body": str(n)}) + b"\n"
        for n in range(LINES)
    )
    async with (
        local_upstream(token=TOKEN) as upstream,
        serving("--outbox", server.url, *SHORT, url=NOWHERE) as doomed,
        serving("--outbox", server.url, *SHORT, url=upstream.url) as other,
    ):
        members = "{dispatcher:default}:members"
        await other.until(lambda: server.client.zcard(members) == 2)
        assert len(set(await keep(doomed, text))) == LINES
        await other.until(lambda: bool(upstream.accepted()))
        assert len(upstream.accepted()) < LINES, "the first one held nothing"
        doomed.signal(signal.SIGKILL)
        await doomed.ended()
        await other.until(lambda: len(upstream.accepted()) >= LINES)
        bodies = [int(each.body or b"") for each in upstream.accepted()]
        assert sorted(bodies) == list(range(LINES))
        for queue in range(40):
            mine = [each for each in bodies if each % 40 == queue]
            assert mine == sorted(mine)


@pytest.mark.anyio
async def test_a_password_is_taken_and_never_shown(server: Server, tmp_path: Path) -> None:
    """Wrong or none: exit code 2 with a word about it. From a file, or in the URL: it works, masked."""
    server.client.config_set("requirepass", PASSWORD)
    file = tmp_path / "password"
    file.write_text("not-the-password\n")
    words = ("--outbox", server.url, "--outbox-password-file", str(file))
    for given in (words, words[:2]):
        code, log = await refused(*given, env=environment(NOWHERE))
        assert (code, "outbox.password" in log, "refuses" in log) == (2, True, True), log
        assert "not-the-password" not in log
    file.write_text(f"{PASSWORD}\n")
    whole = server.url.replace("unix://", f"unix://:{QUOTED}@")
    async with local_upstream(token=TOKEN) as upstream:
        env = environment(upstream.url, DISPATCHER_OUTBOX_FILE=whole, DISPATCHER_OUTBOX_FLEET="other")
        code, told, errors = await check(env=env)
        assert (code, told.splitlines()[-1]) == (0, f"outbox {server.url}: reachable"), errors
        async with serving(*words, url=upstream.url) as by_file, serving(env=env) as by_url:
            for sidecar in (by_file, by_url):
                assert (await sidecar.publish())[0] == 200
                async with sidecar.session.get(f"{sidecar.admin}/status.json") as response:
                    told += await response.text()
                told += sidecar.log
    assert PASSWORD not in told
    assert QUOTED not in told
    code, told, _ = await check("--outbox", server.url, env=environment(NOWHERE))
    assert code == 1
    assert "refuses the user or the password" in told


@pytest.mark.anyio
async def test_redis_over_tls_with_a_certificate_of_ones_own(tmp_path: Path) -> None:
    """`rediss://` with its authority: delivered. Without it, or under another name: not trusted."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = (
        *("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no"),
    )
    trusting = f"?ssl_ca_certs={cert}"
    with running(tmp_path, *options):
        async with (
            local_upstream(token=TOKEN) as upstream,
            serving("--outbox", f"rediss://localhost:{port}/0{trusting}", url=upstream.url) as sidecar,
        ):
            assert (await sidecar.publish())[0] == 200
            for wrong in (f"localhost:{port}", f"127.0.0.1:{port}/0{trusting}"):
                code, told, _ = await check("--outbox", f"rediss://{wrong}", env=environment(upstream.url))
                assert (code, "certificate verify failed" in told) == (1, True), told


# ------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("given", "shown", "password"),
    [
        ("redis://host", "redis://host", None),
        ("redis://host:6380/3", "redis://host:6380/3", None),
        ("REDIS://me:pass%2Fword@host/0", "redis://me@host/0", "pass/word"),
        ("rediss://:hush@[::1]:1/0", "rediss://[::1]:1/0", "hush"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2", None),
        ("unix://me:hush@/run/redis.sock", "unix://me@/run/redis.sock", "hush"),
    ],
)
def test_a_url_is_kept_without_its_password(given: str, shown: str, password: str | None) -> None:
    """It is in no repr, and put together again it says the same."""
    made = OutboxSettings(file=given)
    assert (made.file, made.password, made.is_shared) == (shown, password, True)
    assert password is None or password not in repr(made)
    again = OutboxSettings(file=put_together(shown, password))
    assert again.password == password


@pytest.mark.parametrize(
    "wrong",
    [
        "http://:hush@host",
        "redis://:hush@",
        "redis://:hush@host:port",
        "redis://:hush@host/name",
        "redis://:hush#x@host",
        "redis://:12#hush@host",
        "redis://u:12?hush@host",
        "redis://host?password=hush",
        "redis:hush@host",
        "redis://:hush@host:70000",
        "unix://:hush@host/run/redis.sock",
        "redis://:hush@[::1/0",
    ],
)
def test_a_wrong_url_is_told_and_not_shown(wrong: str) -> None:
    """What may be a password is in no error."""
    with pytest.raises(ConfigError, match=r"outbox\.file.*redis://") as caught:
        SidecarConfig.load(env={"QSTASH_TOKEN": "t"}, outbox_file=wrong)
    assert "hush" not in f"{caught.value} {caught.value.value}"


def test_the_password_is_given_once_and_masked(tmp_path: Path) -> None:
    """By the URL, the environment or a file; two of them, an empty or no file are mistakes."""
    file = tmp_path / "password"
    file.write_text("from-the-file\n")
    env = {"QSTASH_TOKEN": "t", "DISPATCHER_OUTBOX_FILE": "redis://host"}
    by_env = SidecarConfig.load(env={**env, "DISPATCHER_OUTBOX_PASSWORD": "from-environment"})
    by_file = SidecarConfig.load(env=env, outbox_password_file=str(file))
    assert (by_env.outbox.password, by_file.outbox.password) == ("from-environment", "from-the-file")
    by_url = SidecarConfig.load(env=env, outbox_file="redis://:from-the-url@host")
    for config in (by_env, by_file, by_url):
        assert "from-" not in f"{list(config.rows())} {config!r}"
    told = change(by_env, by_url)
    assert "outbox.password" in told.refused
    assert "from-" not in f"{told.refused} {told.taken}"
    twice = {"outbox_file": "redis://:from-the-url@host", "outbox_password_file": str(file)}
    for more, said in (
        (twice, "given twice"),
        ({"outbox_password_file": str(tmp_path / "none")}, "cannot be read"),
        ({"outbox_password_file": str(tmp_path)}, "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            SidecarConfig.load(env=env, **more)
        assert "from-" not in str(caught.value)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        SidecarConfig.load(env=env, outbox_password_file=str(file))


def test_a_lease_outlasts_the_longest_request() -> None:
    """Half of it and a second; files have none. The fleet's name fits into a key."""
    env = {"QSTASH_TOKEN": "t"}
    with pytest.raises(ConfigError, match=r"outbox\.lease.*attempt_timeout"):
        SidecarConfig.load(env=env, outbox_file="redis://host", transport_attempt_timeout=30)
    SidecarConfig.load(env=env, outbox_file="redis://host", transport_attempt_timeout=29)
    SidecarConfig.load(env=env, outbox_file="a", transport_attempt_timeout=30)
    with pytest.raises(ConfigError, match=r"outbox\.fleet"):
        OutboxSettings(fleet="a b")


def test_the_commands_for_files_take_no_url(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and a word about what to do; the URL is not shown."""
    arguments = argparse.Namespace(action="status", file="redis://:hush@host", ids=[], all=False, json=False)
    assert outbox_command.run(arguments) == 2
    told = capsys.readouterr().err
    assert "admin listener" in told
    assert "hush" not in told


@pytest.mark.anyio
async def test_send_takes_no_url() -> None:
    """The same for `send --outbox`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dispatcher", "send", "-", "--outbox", "redis://:hush@host"),
        env=environment(NOWHERE),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == 2
    assert b"wants a file" in told
    assert b"hush" not in told
