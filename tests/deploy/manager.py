"""A service manager for one unit: its sockets, its credentials, its sandbox, its notes, on a real process.

What it gives the process is read from the unit files; what this user may not do (mounts, another user) is
left out. Used by the tests of the units.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.deploy.sandbox import __file__ as SANDBOX  # noqa: N812 - it is a constant here
from tests.deploy.units import Unit, environment, seconds, system_calls
from tests.imports import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

DYNAMIC: Final = 61_184
"""The first user that `DynamicUser=` takes."""
PATIENCE_SECONDS: Final = 30.0
COMMAND: Final = "/opt/dispatcher/bin/dispatcher"
HERE: Final = (sys.executable, "-m", "dispatcher")
"""What stands in its place."""


class Manager:
    """The process and what is known of it.

    Args:
        folder: Reached by the unit's user, with `state` and `credentials` in it.
    """

    def __init__(self, service: Unit, listen: Unit, folder: Path) -> None:
        self.service = service
        self.folder = folder
        self.user = unit_user()
        self.state, self.credentials = folder / "state", folder / "credentials"
        self.notes: list[str] = []
        self.log = ""
        self.sockets = [bound(one) for one in listen["Socket"]["ListenStream"]]
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.setblocking(False)
        self.notify.bind(str(folder / "notify"))
        (folder / "notify").chmod(0o777)
        self.process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None]

    @property
    def addresses(self) -> list[str]:
        """URLs of the unit's sockets, in its order."""
        return [f"http://{host}:{port}" for host, port in (one.getsockname()[:2] for one in self.sockets)]

    def described(self) -> dict[str, Any]:
        """What the sandbox is to be made of."""
        section = self.service["Service"]
        specifiers = {"d": str(self.credentials), "S": str(self.state)}
        given = environment(self.service, specifiers)
        (names,) = section["EnvironmentFile"]
        assert names == "-/etc/dispatcher/dispatcher.env"
        given |= assignments(self.folder / "dispatcher.env")
        (watchdog,) = section["WatchdogSec"]
        own = {
            "PATH": os.defpath,
            "PYTHONPATH": str(ROOT),
            "NOTIFY_SOCKET": str(self.folder / "notify"),
            "WATCHDOG_USEC": str(int(seconds(watchdog) * 1e6)),
            "LISTEN_FDS": str(len(self.sockets)),
            "LISTEN_FDNAMES": ":".join(["dispatcher.socket"] * len(self.sockets)),
        }
        return {
            "environment": {**own, **given},
            "descriptors": [one.fileno() for one in self.sockets],
            "writable": [str(self.state)],
            "user": self.user,
            "umask": section["UMask"][0],
            "calls": sorted(system_calls(self.service)),
            "families": section["RestrictAddressFamilies"][0].split(),
        }

    def command(self) -> list[str]:
        """The unit's `ExecStart=`, with this Python's package in place of the installed one."""
        (line,) = self.service["Service"]["ExecStart"]
        program, *words = shlex.split(line)
        assert program == COMMAND
        return [*HERE, *words]

    async def start(self, command: Sequence[str] | None = None) -> None:
        """Begin it, and read what it says."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            SANDBOX,
            json.dumps(self.described()),
            *(command or self.command()),
            cwd="/",
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.STDOUT,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=tuple(one.fileno() for one in self.sockets),
        )
        self._reading = asyncio.create_task(self._read(self.process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self.log += line.decode()

    async def note(self, words: str) -> None:
        """Wait for a note of the process that has a line, from now on; it must not end before."""
        assert self.process is not None
        ended = asyncio.create_task(self.process.wait())
        hearing = asyncio.create_task(self._hear(words))
        await asyncio.wait((ended, hearing), timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not hearing.done():
            hearing.cancel()
            raise AssertionError(f"no {words}: {self.notes}; exit code {self.process.returncode}: {self.log}")
        await hearing

    async def _hear(self, words: str) -> None:
        loop = asyncio.get_running_loop()
        while True:
            text = (await loop.sock_recv(self.notify, 4_096)).decode()
            self.notes.append(text)
            if words in text.splitlines():
                return

    async def ended(self) -> int:
        """Its exit code; the log is whole then."""
        assert self.process is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._reading
            await self.process.wait()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def managed(service: Unit, listen: Unit, settings: str, token: str) -> AsyncIterator[Manager]:
    """A manager with its folders, and the end of its process."""
    with reachable_folder() as folder:
        prepare(folder, settings, token)
        manager = Manager(service, listen, folder)
        try:
            yield manager
        finally:
            if manager.process is not None and manager.process.returncode is None:
                manager.process.kill()
                await manager.ended()
            manager.notify.close()
            for one in manager.sockets:
                one.close()


def prepare(folder: Path, settings: str, token: str) -> None:
    """The state directory, the credentials, the file of settings."""
    (folder / "dispatcher.env").write_text(settings)
    (folder / "state" / "dispatcher").mkdir(parents=True, mode=0o700)
    (folder / "credentials").mkdir(mode=0o700)
    for name in ("token", "callers"):
        path = folder / "credentials" / name
        path.write_text(f"{token if name == 'token' else 'caller'}\n")
        path.chmod(0o400)
    if os.geteuid() == 0:
        for path in (
            folder / "state",
            *folder.glob("state/*"),
            folder / "credentials",
            *folder.glob("cred*/*"),
        ):
            os.chown(path, unit_user(), unit_user())


def unit_user() -> int:
    """One without a name; where such a one cannot reach this Python, root, who has no capability then."""
    needed = [Path(sys.executable).resolve(), *map(Path, sys.path), ROOT]
    folders = {folder for one in needed for folder in (one, *one.parents) if folder.exists()}
    return DYNAMIC if all(folder.stat().st_mode & 0o005 for folder in folders) else os.geteuid()


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A temporary folder that another user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="dispatcher-unit-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def bound(address: str) -> socket.socket:
    """A listening socket at a unit's host, on a free port."""
    host, _, port = address.rpartition(":")
    assert port.isdigit(), address
    return socket.create_server((host, 0), backlog=16)


def assignments(path: Path) -> dict[str, str]:
    """What an `EnvironmentFile=` sets."""
    pairs = (line.partition("=") for line in path.read_text().splitlines() if line)
    return {name: value for name, _, value in pairs}
