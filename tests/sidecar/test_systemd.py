"""The service manager's conventions, as far as a process of its own is not needed to see them."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from dispatcher.errors import ConfigError
from dispatcher.sidecar import systemd
from dispatcher.sidecar.systemd import Notifier, inherited_sockets

if TYPE_CHECKING:
    from pathlib import Path


def test_without_a_service_manager_nothing_happens() -> None:
    """No variable, no socket, no watchdog; and telling nobody fails not."""
    assert inherited_sockets({}) == ([], [])
    notifier = Notifier({})
    assert notifier.watchdog_seconds == 0
    notifier.ready("x")
    notifier.alive()
    notifier.close()


def test_descriptors_for_another_process_are_not_taken() -> None:
    """Variables that were inherited by mistake; they are taken out all the same."""
    environment = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c", "X": "y"}
    assert inherited_sockets(environment) == ([], [])
    assert environment == {"X": "y"}


@pytest.mark.parametrize("count", ["-1", "x", "1.5"])
def test_a_count_that_is_none_is_refused(count: str) -> None:
    """It says which variable."""
    with pytest.raises(ConfigError, match="LISTEN_FDS"):
        inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def test_what_does_not_listen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket of another kind, and a descriptor that is no socket; neither is closed."""
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    with socket.socket() as silent:
        monkeypatch.setattr(systemd, "FIRST_DESCRIPTOR", silent.fileno())
        with pytest.raises(ConfigError, match="does not listen"):
            inherited_sockets(dict(environment))
        assert silent.fileno() >= 0
        silent.bind(("127.0.0.1", 0))
    with open(os.devnull) as file:  # noqa: PTH123 - a descriptor is wanted
        monkeypatch.setattr(systemd, "FIRST_DESCRIPTOR", file.fileno())
        with pytest.raises(ConfigError, match="is no socket"):
            inherited_sockets(dict(environment))


@pytest.mark.parametrize(
    ("pid", "microseconds", "seconds"),
    [
        ("", "3000000", 1.5),
        pytest.param(str(os.getpid()), "200000", 0.1, id="ours"),
        ("1", "3000000", 0.0),
        ("", "", 0.0),
        ("", "soon", 0.0),
    ],
)
def test_the_watchdog_is_fed_twice_in_its_time(pid: str, microseconds: str, seconds: float) -> None:
    """If it is this process that is watched."""
    environment = {"WATCHDOG_PID": pid, "WATCHDOG_USEC": microseconds}
    assert Notifier(environment).watchdog_seconds == seconds


@pytest.mark.parametrize("prefix", ["@", "/"])
def test_notes_reach_both_kinds_of_address(prefix: str, tmp_path: Path) -> None:
    """A path, or a name in the abstract space; a line break in a status makes no second variable."""
    name = f"@dispatcher-test-{os.getpid()}" if prefix == "@" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if prefix == "@" else name)
        manager.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": name})
        notifier.ready("one\nREADY=0")
        assert manager.recv(1_000) == b"READY=1\nSTATUS=one READY=0"
        notifier.stopping("two")
        assert manager.recv(1_000) == b"STOPPING=1\nSTATUS=two"
        notifier.close()
        notifier.alive()


def test_a_manager_that_has_gone_or_does_not_read_holds_nothing_up(tmp_path: Path) -> None:
    """The note is dropped, at once."""
    path = str(tmp_path / "notify")
    notifier = Notifier({"NOTIFY_SOCKET": path})
    notifier.alive()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        for _ in range(5_000):
            notifier.alive()
        assert manager.recv(1_000) == b"WATCHDOG=1"
    notifier.close()
