"""`dispatcher dev` as a process: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import orjson
import pytest

from dispatcher.cli import main
from dispatcher.cli.dev import load_plan
from dispatcher.devserver.faults import NAMES, FaultPlan
from dispatcher.errors import ConfigError
from tests.devserver.support import TOKEN, dev_process

if TYPE_CHECKING:
    from pathlib import Path


def ask(url: str, path: str, body: bytes | None = None) -> tuple[int, object]:
    request = urllib.request.Request(url + path, data=body, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return reply.status, orjson.loads(reply.read())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_stops_with_0(tmp_path: Path, number: signal.Signals) -> None:
    """It says how to reach it, takes the token from the environment, answers, ends cleanly on a signal."""
    with dev_process(tmp_path) as server:
        assert server.process.stdout is not None
        assert [server.process.stdout.readline().strip() for _ in range(2)] == [
            f"export QSTASH_URL={server.url}",
            f"export QSTASH_TOKEN={TOKEN}",
        ]
        status, reply = ask(server.url, "/v2/batch", b'[{"destination":"https://example.com"}]')
        assert status == 200
        assert isinstance(reply, list)
        assert server.stop(number) == 0
        assert server.process.stderr is not None
        assert server.process.stderr.read() == ""


def test_settings_reach_the_server(tmp_path: Path) -> None:
    """Limits, window, bodies and a fault plan from a file do what they say."""
    plan = tmp_path / "plan.toml"
    plan.write_text('error_entry = 1.0\nlatency = "1ms"\n')
    words = [
        "--max-items",
        "2",
        "--deduplication-window",
        "0",
        "--keep-bodies",
        "--faults",
        str(plan),
        "--seed",
        "3",
    ]
    with dev_process(tmp_path, *words) as server:
        item = {
            "destination": "https://example.com",
            "body": "b",
            "headers": {"Upstash-Deduplication-Id": "1"},
        }
        _, reply = ask(server.url, "/v2/batch", orjson.dumps([item] * 2))
        assert isinstance(reply, list)
        assert [list(entry) for entry in reply] == [["error"], ["error"]]
        with pytest.raises(urllib.error.HTTPError, match="412"):
            ask(server.url, "/v2/batch", orjson.dumps([item] * 3))
        ask(server.url, "/dispatcher-dev/faults", b"latency=0")
        ask(server.url, "/v2/batch", orjson.dumps([item] * 2))
        _, summary = ask(server.url, "/dispatcher-dev/summary")
        assert isinstance(summary, dict)
        assert (summary["accepted"], summary["accepted_again_by_id"]) == (2, 1)


def test_a_taken_port_is_exit_2(tmp_path: Path) -> None:
    """The second server on a port ends at once and says what to do."""
    with dev_process(tmp_path) as server:
        command = [sys.executable, "-m", "dispatcher", "dev", "--port", str(server.port), "--token", "t"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (second.returncode, second.stdout) == (2, "")
        taken = f"127.0.0.1:{server.port} is taken; use another, or 0 for a free one"
        assert second.stderr == f"dispatcher dev: port: {taken}\n"


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (["--port", "70000"], "between 0 and 65535"),
        (["--faults", "nonsense=1"], "throttle_burst"),
        (["--faults", "missing.toml"], "cannot be read"),
        (["--faults", "missing"], "cannot be read"),
        (["--deduplication-window", "-1"], "at least 0"),
        (["--deduplication-window", "nan"], "at least 0"),
        (["--deduplication-window", "inf"], "at least 0"),
        (["--port", "0", "--port-file", "no/where"], "port-file: 'no/where' cannot be written: No such file"),
        (["--max-items", "0"], "at least 1"),
        (["--max-message-bytes", "0"], "at least 1"),
        (["--host", "192.0.2.1", "--port", "0"], "cannot listen on 192.0.2.1:0"),
    ],
)
def test_wrong_settings_are_exit_2(words: list[str], needle: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is refused before anything is served, with what would be right."""
    assert main(["dev", *words]) == 2
    assert needle in capsys.readouterr().err


def test_a_damaged_state_file_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused and named, not overwritten."""
    state = tmp_path / "state"
    state.write_text("not ours\n")
    assert main(["dev", "--port", "0", "--state", str(state)]) == 2
    assert "line 1 is damaged" in capsys.readouterr().err
    assert state.read_text() == "not ours\n"


def test_the_help_explains_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a plan may name stands in `--help`."""
    with pytest.raises(SystemExit) as caught:
        main(["dev", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert [name for name in NAMES if name not in text] == []


def test_a_plan_is_inline_or_a_file(tmp_path: Path) -> None:
    """The same plan either way; no text is no faults."""
    (tmp_path / "a").write_text("truncate = 0.5\n")
    assert load_plan(str(tmp_path / "a")) == load_plan("truncate=0.5") == FaultPlan.parse("truncate=0.5")
    assert load_plan("") == FaultPlan()
    with pytest.raises(ConfigError):
        load_plan("truncate=1.5")
