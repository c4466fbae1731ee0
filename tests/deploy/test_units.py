"""The systemd units: systemd's own opinion of them, and the unit's command run as systemd would run it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from typing import TYPE_CHECKING

import aiohttp
import pytest

from dispatcher.config import Config
from dispatcher.sidecar.outbox_settings import OutboxSettings
from dispatcher.sidecar.settings import ServeSettings
from dispatcher.testing import local_upstream
from tests.deploy.manager import COMMAND, HERE, Manager, managed
from tests.deploy.tools import needs, ran
from tests.deploy.units import SERVICE, SOCKET, seconds, system_calls, unit
from tests.imports import ROOT

if TYPE_CHECKING:
    from pathlib import Path

needs_systemd = needs("systemd-analyze", "Debian: systemd")
TOKEN = "the-token"
EXPOSURE_MAX = 1.5
"""Of 10: what is left is mostly that it talks to a network and has no root directory of its own."""
SERVE = ServeSettings()
ATTEMPTS = {
    "write": "open('{root}/pyproject.toml', 'a')",
    "home": "open('/var/tmp/x', 'w')",
    "raw socket": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "become root": "import os; os.setuid(0)",
    "nice": "import os; os.setpriority(os.PRIO_PROCESS, 0, 5)",
    "mount": "import ctypes, os; l = ctypes.CDLL(None, use_errno=True); "
    "l.mount(b'a', b'/mnt', b'tmpfs', 0, None) and (_ for _ in ()).throw(OSError(ctypes.get_errno(), 'no'))",
    "write and execute": "import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)",
}
"""What the sandbox has to refuse; each of them raises."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A copy of the units whose command is there: systemd looks for it."""
    folder = tmp_path / "units"
    shutil.copytree(SERVICE.parent, folder)
    copy = folder / SERVICE.name
    text = copy.read_text(encoding="utf-8")
    assert f"ExecStart={COMMAND} " in text
    copy.write_text(text.replace(COMMAND, sys.executable), encoding="utf-8")
    return folder


@needs_systemd
def test_systemd_has_nothing_to_say_against_them(units: Path) -> None:
    """Not a word: its exit code would be 0 also for a key that it does not know."""
    assert ran("systemd-analyze", "verify", units / SERVICE.name, units / SOCKET.name) == (0, "")
    broken = units / SERVICE.name
    broken.write_text(broken.read_text(encoding="utf-8").replace("ProtectHome=", "ProtectHouse="))
    code, text = ran("systemd-analyze", "verify", broken)
    assert "ProtectHouse" in text, f"a mistake goes unseen: {code} {text}"


@needs_systemd
def test_little_of_the_system_is_exposed(units: Path) -> None:
    """By systemd's own score, of 10 for a unit without any sandbox."""
    code, text = ran("systemd-analyze", "security", "--offline=yes", "--no-pager", units / SERVICE.name)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", text)
    assert found, text
    assert code == 0
    assert float(found[1]) <= EXPOSURE_MAX, text


def test_times_and_bounds_fit_the_settings() -> None:
    """It is given the time to drain, and the descriptors that it wants; the ports are the defaults."""
    service, listen = (unit(path) for path in (SERVICE, SOCKET))
    section = {key: values[-1] for key, values in service["Service"].items()}
    drain = Config(token="t").drain_within
    assert drain + 5 <= seconds(section["TimeoutStopSec"])
    assert int(section["LimitNOFILE"]) >= 2 * SERVE.max_connections + 256
    assert section["RestartPreventExitStatus"] == "2"
    expected = [f"127.0.0.1:{port}" for port in (SERVE.port, SERVE.admin_port)]
    assert listen["Socket"]["ListenStream"] == expected, "intake first: without names the order counts"
    assert OutboxSettings().file is None, "the unit names one"


@needs_systemd
@pytest.mark.anyio
async def test_the_units_command_lives_with_systemd() -> None:
    """Sockets, credentials, sandbox, READY, WATCHDOG, RELOADING, STOPPING; the door stays open behind it."""
    async with (
        local_upstream(token=TOKEN) as upstream,
        managed(unit(SERVICE), unit(SOCKET), f"QSTASH_URL={upstream.url}\n", TOKEN) as manager,
        aiohttp.ClientSession() as session,
    ):
        intake, admin = manager.addresses
        await manager.start()
        await manager.note("READY=1")
        assert await published(session, intake, "caller") == 200
        assert await published(session, intake, "a stranger") == 401
        for path in ("/livez", "/readyz", "/metrics", "/status"):
            async with session.get(f"{admin}{path}") as response:
                assert response.status == 200, path
        assert (manager.state / "dispatcher" / "outbox.db").stat().st_mode & 0o777 == 0o600
        assert_confined(manager)
        await manager.note("WATCHDOG=1")
        await manager.note("WATCHDOG=1")
        await told_to_reload(manager)
        assert manager.process is not None
        manager.process.send_signal(signal.SIGTERM)
        await manager.note("STOPPING=1")
        assert await manager.ended() == 0, manager.log
        assert [one.body for one in upstream.accepted()] == [b"hello"]
        # Who comes now waits in the sockets, that are the manager's, for the next process.
        waiting = asyncio.create_task(published(session, intake, "caller"))
        await manager.start()
        assert await waiting == 200
        await manager.note("READY=1")
    assert TOKEN not in manager.log


async def published(session: aiohttp.ClientSession, intake: str, token: str) -> int:
    """The status of one publish."""
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{intake}/v2/publish/https://example.com/hook"
    async with session.post(url, data=b"hello", headers=headers) as response:
        return response.status


def assert_confined(manager: Manager) -> None:
    """The kernel's own word that the process is in the sandbox."""
    assert manager.process is not None
    with open(f"/proc/{manager.process.pid}/status", encoding="utf-8") as file:  # noqa: PTH123 - of the kernel
        facts = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    assert (facts["Seccomp"], facts["NoNewPrivs"], facts["Umask"]) == ("2", "1", "0077")
    if os.geteuid() == 0:
        assert set(facts["Uid"].split()) == {str(manager.user)}
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0


async def told_to_reload(manager: Manager) -> None:
    """The unit's `ExecReload=`, as far as it is a signal."""
    (line,) = manager.service["Service"]["ExecReload"]
    assert line == "/bin/kill -HUP $MAINPID"
    assert manager.process is not None
    manager.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(10):
        await manager.note("READY=1")
    assert any(note.startswith("RELOADING=1\nMONOTONIC_USEC=") for note in manager.notes)


@needs_systemd
@pytest.mark.anyio
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts and users are root's to change")
async def test_the_sandbox_of_that_test_is_one() -> None:
    """Each attempt fails inside, as it must for the test above to mean anything."""
    script = "\n".join(
        f"try:\n exec({code.format(root=ROOT)!r})\n print('done:', {name!r})\nexcept OSError: print({name!r})"
        for name, code in ATTEMPTS.items()
    )
    async with managed(unit(SERVICE), unit(SOCKET), "", TOKEN) as manager:
        await manager.start([sys.executable, "-c", script])
        assert await manager.ended() == 0, manager.log
    assert manager.log.split("\n")[:-1] == list(ATTEMPTS)


@needs_systemd
def test_the_filter_leaves_what_it_says() -> None:
    """The sets are read as systemd reads them: the allowed ones less the forbidden ones."""
    calls = system_calls(unit(SERVICE))
    assert {"read", "epoll_wait", "prlimit64", "execve", "clock_gettime"} <= calls
    assert not {"mount", "setuid", "setpriority", "ptrace", "reboot", "bpf"} & calls


@needs_systemd
@pytest.mark.anyio
async def test_a_wrong_configuration_is_not_tried_again() -> None:
    """The exit code is the one that the unit does not restart for."""
    async with managed(unit(SERVICE), unit(SOCKET), "DISPATCHER_QUEUE_MAX=1\n", TOKEN) as manager:
        await manager.start()
        code = await manager.ended()
    assert "DISPATCHER_QUEUE_MAX" in manager.log
    assert manager.service["Service"]["RestartPreventExitStatus"] == [str(code)]
    assert HERE[0] == sys.executable
