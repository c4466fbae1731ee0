"""How `dispatcher demo` ends before its time or without its streams: told in a line, nothing left running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

COMMAND = [sys.executable, "-m", "dispatcher", "demo"]
PATIENCE_SECONDS = 60.0


def is_served(url: str) -> bool:
    """Whether anything answers there."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("words", [[], ["--chaos"]], ids=["plain", "chaos"])
def test_a_signal_ends_everything_soon(number: signal.Signals, words: list[str]) -> None:
    """As Ctrl-C does it, to the whole group: one line, the shell's exit code, and no process stays behind."""
    process = subprocess.Popen(
        [*COMMAND, "--messages", "1000000", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its group is not ours
    )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(1 + len(words))]
        urls = re.findall(r"http://[\d.:]+", "".join(said))
        assert len(urls) == len(said)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=12)  # far less than the 25 s a drain may usually take
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number
    assert errors == f"dispatcher demo: {number.name}: stopped, and nothing was checked\n"
    assert not any(is_served(url) for url in urls)


def test_a_reader_that_leaves_is_no_traceback() -> None:
    """`dispatcher demo | head -1`: exit 1, and nothing on standard error."""
    process = subprocess.Popen(
        [*COMMAND, "--messages", "300", "--faults", "latency=1ms"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"local upstream")
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(PATIENCE_SECONDS), errors) == (1, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_it_needs_no_standard_streams(closed: str) -> None:
    """A closed one does not become a socket, neither here nor in the upstream's process."""
    words = "demo --messages 300 --faults latency=1ms"
    command = f'exec "{sys.executable}" -m dispatcher {words} {closed}'
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert ("every message accounted for" in done.stdout) is (">&-" not in closed.split())


def test_a_failed_check_names_its_counts() -> None:
    """A refused token fails every message: that is said, and not that some count above is not 0."""
    words = ["--messages", "500", "--faults", "refuse_token=1"]
    done = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "the check FAILED: 500 failed (Halted)"


def test_injected_faults_are_no_warnings() -> None:
    """That the service asks to wait, as it was told to, is not told; nor is poison sent that it takes."""
    words = ["--messages", "2000", "--faults", "throttle_burst=0.2 unavailable=0.1 burst_reset=50ms"]
    done = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
