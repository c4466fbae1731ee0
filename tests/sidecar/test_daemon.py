"""`dispatcher serve` as a real process: where it listens, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import stat
from collections import Counter
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from dispatcher.sidecar.daemon import EXIT_UNCONFIRMED, Daemon
from dispatcher.sidecar.settings import SidecarConfig
from dispatcher.testing import local_upstream
from tests.sidecar.daemon_support import TOKEN, environment, refused, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio
NOWHERE = "http://127.0.0.1:1"
STOPS = (signal.SIGTERM, signal.SIGINT)
LOAD = 400


@pytest.mark.parametrize("stop", STOPS)
async def test_it_serves_and_ends_with_0(stop: signal.Signals) -> None:
    """A publish arrives, health is good, the log names both doors and no token, the end is clean."""
    async with local_upstream() as upstream, serving(url=upstream.url) as sidecar:
        status, answer = await sidecar.publish("hello")
        (accepted,) = upstream.accepted()
        assert (status, [answer["messageId"]]) == (200, list(accepted.message_ids))
        assert await sidecar.health("/livez") == await sidecar.health("/readyz") == 200
        sidecar.signal(stop)
        assert await sidecar.ended() == 0
    assert sidecar.intake.startswith("http://127.0.0.1:")
    assert sidecar.admin.startswith("http://127.0.0.1:")
    assert stop.name in sidecar.log
    assert TOKEN not in sidecar.log
    assert not sidecar.other_lines


async def test_a_stop_under_load_loses_nothing() -> None:
    """Not ready first, newcomers refused, then what was taken is answered: 200 and accepted, or 503."""
    async with (
        local_upstream(faults="latency=400ms") as upstream,
        serving("--limit-max-in-flight", "4", url=upstream.url) as sidecar,
    ):
        publishes = [asyncio.create_task(sidecar.publish(f"body {number}")) for number in range(LOAD)]
        await sidecar.until(lambda: bool(upstream.requests))
        assert await sidecar.health("/readyz") == 200
        sidecar.signal(signal.SIGTERM)
        await sidecar.said("SIGTERM")
        assert await sidecar.health("/readyz") == 503
        assert await sidecar.health("/livez") == 200
        assert (await sidecar.publish("too late"))[0] == 503
        assert not all(one.done() for one in publishes), "the drain was over before it could be looked at"
        answers = await asyncio.gather(*publishes)
        assert await sidecar.ended() == 0, sidecar.log
        accepted = {one.message_ids[0] for one in upstream.accepted()}
    statuses = Counter(status for status, _ in answers)
    assert set(statuses) <= {200, 503}
    assert statuses[200] > LOAD / 4
    assert {answer["messageId"] for status, answer in answers if status == 200} == accepted
    assert len(accepted) == statuses[200]


async def test_a_drain_that_is_over_tells_what_is_not_confirmed() -> None:
    """The upstream hangs: at the deadline each caller is told 504 with the certainty, the code is 1."""
    async with (
        local_upstream(faults="hang_before=1") as upstream,
        serving("--drain-within", "0.3", url=upstream.url) as sidecar,
    ):
        publishes = [asyncio.create_task(sidecar.publish()) for _ in range(5)]
        await sidecar.until(lambda: bool(upstream.requests))
        sidecar.signal(signal.SIGTERM)
        answers = await asyncio.gather(*publishes)
        assert await sidecar.ended() == EXIT_UNCONFIRMED
    assert [status for status, _ in answers] == [504] * 5
    certainties = {answer["certainty"] for _, answer in answers}
    assert {"unknown"} <= certainties <= {"unknown", "not_sent"}
    assert "5 not confirmed" in sidecar.log


async def test_callers_that_never_finish_do_not_hold_the_end_back() -> None:
    """Half a head, half a body, an upstream that hangs behind the proxy: the drain's time is all they get."""
    asked: list[asyncio.StreamWriter] = []
    halves: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: asked.append(writer), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with serving("--drain-within", "2", url=url) as sidecar:
        port = int(sidecar.intake.rpartition(":")[2])
        head = f"POST /v2/publish/https://e.com HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        for sent in (head, f"{head}Content-Length: 9\r\n\r\nhalf"):
            halves.append((await asyncio.open_connection("127.0.0.1", port))[1])
            halves[-1].write(sent.encode())
            await halves[-1].drain()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        looking = asyncio.create_task(sidecar.session.get(f"{sidecar.intake}/v2/queues", headers=headers))
        await sidecar.until(lambda: bool(asked))
        began = asyncio.get_running_loop().time()
        sidecar.signal(signal.SIGTERM)
        assert await sidecar.ended() == 0
        assert asyncio.get_running_loop().time() - began < 3.7
        with pytest.raises(aiohttp.ClientError):
            await looking
    for writer in (*asked, *halves):
        writer.close()
    silent.close()


@pytest.mark.parametrize("stop", STOPS)
async def test_a_second_signal_ends_it_now(stop: signal.Signals, tmp_path: Path) -> None:
    """However long the drain may take; the code tells the signal, and the Unix socket is removed."""
    path = tmp_path / "intake.sock"
    words = ("--socket", str(path), "--port", "0", "--drain-within", "600")
    async with (
        local_upstream(faults="hang_before=1") as upstream,
        serving(*words, url=upstream.url) as sidecar,
    ):
        sidecar.intake = next(one for one in sidecar.log.replace(",", "").split() if "http:" in one)
        publish = asyncio.create_task(sidecar.publish())
        await sidecar.until(lambda: bool(upstream.requests))
        sidecar.signal(signal.SIGTERM)
        await sidecar.said("SIGTERM")
        assert path.exists()
        sidecar.signal(stop)
        assert await sidecar.ended() == 128 + stop
        with pytest.raises(aiohttp.ClientError):
            await publish
    assert not path.exists()
    assert "1 messages unconfirmed" in sidecar.log


async def test_a_dead_dispatcher_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    """A daemon that can deliver nothing says so and ends with 1, so that whoever runs it starts another."""
    async with local_upstream() as upstream:
        config = SidecarConfig.load(env=environment(upstream.url), serve_port=0, serve_admin_port=0)
        daemon = Daemon(config, None)
        running = asyncio.create_task(daemon.run())
        async with asyncio.timeout(10):
            while daemon._state.phase != "ready":
                await asyncio.sleep(0.01)
            daemon._dispatcher._pump.fail(RuntimeError("planted"))
            assert await running == EXIT_UNCONFIRMED
    assert "the dispatcher has stopped" in caplog.text


# ------------------------------------------------------------------------------------------------ listeners


async def publish_through(path: Path) -> int:
    """One publish over a Unix socket."""
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = "http://sidecar/v2/publish/https://example.com/hook"
        async with session.post(url, data=b"x", headers=headers) as response:
            await response.read()
            return response.status


async def test_a_unix_socket_instead_of_a_port(tmp_path: Path) -> None:
    """Only the path is listened on, only its owner may connect, and it is gone at the end."""
    path = tmp_path / "intake.sock"
    async with local_upstream() as upstream, serving("--socket", str(path), url=upstream.url) as sidecar:
        assert sidecar.intake == f"unix:{path}"
        assert await publish_through(path) == 200
        assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0
        sidecar.signal(signal.SIGTERM)
        assert await sidecar.ended() == 0
    assert not path.exists()


async def test_a_path_left_behind_is_taken_over(tmp_path: Path) -> None:
    """After `kill -9` the path is still there, and the next process starts on it all the same."""
    path = tmp_path / "intake.sock"
    async with local_upstream() as upstream:
        async with serving("--socket", str(path), url=upstream.url) as first:
            first.signal(signal.SIGKILL)
            await first.ended()
        assert path.is_socket()
        async with serving("--socket", str(path), url=upstream.url):
            assert await publish_through(path) == 200


async def test_a_path_in_use_is_refused(tmp_path: Path) -> None:
    """A live process keeps its socket, and a file is never removed."""
    path, file = tmp_path / "intake.sock", tmp_path / "file"
    file.write_text("precious")
    async with local_upstream() as upstream, serving("--socket", str(path), url=upstream.url):
        code, said = await refused("--socket", str(path), env=environment(upstream.url))
        assert (code, await publish_through(path)) == (2, 200)
        assert "another process listens on" in said
        code, said = await refused("--socket", str(file), env=environment(upstream.url))
        assert code == 2
        assert "serve.socket" in said
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("flag", "setting"), [("--port", "serve.port"), ("--admin-port", "serve.admin_port")]
)
async def test_a_port_that_is_taken_ends_the_start(flag: str, setting: str) -> None:
    """Exit 2 with the setting's name, before a message could be taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = await refused(flag, str(taken.getsockname()[1]), env=environment(NOWHERE))
    assert code == 2
    assert f"{setting}: 127.0.0.1:" in said
    assert "is taken" in said


async def test_no_token_only_where_nobody_else_comes(tmp_path: Path) -> None:
    """`none` works on loopback and on a Unix socket; where others could reach it, the start is refused."""
    none = ("--serve-authentication", "none")
    async with local_upstream() as upstream:
        async with serving(*none, url=upstream.url) as sidecar:
            assert (await sidecar.publish(token="whoever"))[0] == 200
        code, said = await refused(*none, "--host", "0.0.0.0", env=environment(upstream.url))
        assert code == 2
        assert "would let everyone who reaches 0.0.0.0 publish" in said
        with socket.create_server(("0.0.0.0", 0)) as open_door:
            async with serving(
                *none, url=upstream.url, hand_over=[open_door.fileno()], ready=False
            ) as sidecar:
                assert await sidecar.ended() == 2
            assert "would let everyone who reaches" in sidecar.log


async def test_several_workers_are_refused_with_the_cure() -> None:
    """The reason is the order of a queue."""
    code, said = await refused("--workers", "2", env=environment(NOWHERE))
    assert code == 2
    assert "serve.workers" in said
    assert "a queue keeps its order only inside one process" in said


# ----------------------------------------------------------------------------------------- service manager


async def test_sockets_of_the_service_manager_are_served() -> None:
    """First the intake, second the admin's; they outlive the process, and who connects then waits."""
    with socket.create_server(("127.0.0.1", 0)) as intake, socket.create_server(("127.0.0.1", 0)) as admin:
        descriptors = [intake.fileno(), admin.fileno()]
        async with local_upstream() as upstream:
            env = environment(upstream.url)
            async with serving(env=env, hand_over=descriptors) as sidecar:
                assert sidecar.intake == f"http://127.0.0.1:{intake.getsockname()[1]}"
                assert sidecar.admin == f"http://127.0.0.1:{admin.getsockname()[1]}"
                assert (await sidecar.publish())[0] == 200
                assert await sidecar.health("/readyz") == 200
                sidecar.signal(signal.SIGTERM)
                assert await sidecar.ended() == 0
            waiting = asyncio.create_task(publish_to(intake.getsockname()[1]))
            async with serving(env=env, hand_over=descriptors):
                assert await waiting == 200


async def publish_to(port: int) -> int:
    """One publish on a connection of its own."""
    url = f"http://127.0.0.1:{port}/v2/publish/https://example.com/hook"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession() as session, session.post(url, data=b"x", headers=headers) as response:
        await response.read()
        return response.status


async def test_sockets_go_by_their_names(tmp_path: Path) -> None:
    """`FileDescriptorName=` says what each is for; a name that is neither is refused."""
    path = tmp_path / "intake.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as admin,
        socket.socket(socket.AF_UNIX) as intake,
    ):
        intake.bind(str(path))
        intake.listen()
        descriptors = [admin.fileno(), intake.fileno()]
        async with local_upstream() as upstream:
            env = environment(upstream.url, LISTEN_FDNAMES="admin:intake")
            async with serving(env=env, hand_over=descriptors) as sidecar:
                assert sidecar.intake == f"unix:{path}"
                assert await publish_through(path) == 200
                assert await sidecar.health("/livez") == 200
                sidecar.signal(signal.SIGTERM)
                assert await sidecar.ended() == 0
            assert path.is_socket(), "the file is the service manager's"
            env = environment(upstream.url, LISTEN_FDNAMES="admin:intaek")
            async with serving(env=env, hand_over=descriptors, ready=False) as sidecar:
                assert await sidecar.ended() == 2
            assert "'intaek' is unknown; allowed are intake and admin" in sidecar.log


class Manager:
    """The service manager's end of `NOTIFY_SOCKET`."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(str(path))
        self.env = {"NOTIFY_SOCKET": str(path)}

    async def next(self) -> dict[str, str]:
        """The next note."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            note = (await loop.sock_recv(self.socket, 4_096)).decode()
        return dict(line.split("=", 1) for line in note.splitlines())


@pytest.fixture
def manager(tmp_path: Path) -> Any:
    made = Manager(tmp_path / "notify.sock")
    yield made
    made.socket.close()


async def test_the_service_manager_is_told(manager: Manager) -> None:
    """Ready once it serves, reloading and ready again, stopping with what is held."""
    async with serving(env=environment(NOWHERE, **manager.env)) as sidecar:
        note = await manager.next()
        assert note["READY"] == "1"
        assert sidecar.intake in note["STATUS"]
        sidecar.signal(signal.SIGHUP)
        note = await manager.next()
        assert note["RELOADING"] == "1"
        assert int(note["MONOTONIC_USEC"]) > 0
        assert (await manager.next())["READY"] == "1"
        sidecar.signal(signal.SIGTERM)
        assert (await manager.next())["STOPPING"] == "1"
        assert await sidecar.ended() == 0


async def test_the_watchdog_is_fed_as_often_as_it_wants(manager: Manager) -> None:
    """Twice in its time, also while draining."""
    async with local_upstream(faults="hang_before=1") as upstream:
        env = environment(upstream.url, WATCHDOG_USEC="200000", **manager.env)
        async with serving("--drain-within", "0.5", env=env) as sidecar:
            assert "READY" in await manager.next()
            began = asyncio.get_running_loop().time()
            for _ in range(5):
                assert await manager.next() == {"WATCHDOG": "1"}
            assert 0.3 < asyncio.get_running_loop().time() - began < 5
            publish = asyncio.create_task(sidecar.publish())
            await sidecar.until(lambda: bool(upstream.requests))
            sidecar.signal(signal.SIGTERM)
            while "STOPPING" not in await manager.next():
                pass
            assert await manager.next() == {"WATCHDOG": "1"}
            await publish
            assert await sidecar.ended() == 1
