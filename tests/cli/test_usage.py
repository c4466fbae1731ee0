"""Wrong usage of the command `dispatcher`: two lines that say what is wrong, and exit 2."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dispatcher.cli import demo, main
from dispatcher.errors import DispatcherError
from tests.cli.send_support import environment

TELLS_ALL = "[options] (--help tells all)"


def run(*words: str, **env: str) -> tuple[int, list[str]]:
    """Exit code and standard error's lines; nothing is said on standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "dispatcher", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(None, None, **env),
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("words", "usage", "error"),
    [
        (
            ["send", "--recipts", "x", "y"],
            "dispatcher send FILE|-",
            "dispatcher send: error: unrecognized arguments: --recipts; did you mean --receipts?",
        ),
        (
            ["send", "x", "--batch-linegr=1"],
            "dispatcher send FILE|-",
            "dispatcher send: error: unrecognized arguments: --batch-linegr; did you mean --batch-linger?",
        ),
        (
            ["demo", "--contrl"],
            "dispatcher demo",
            "dispatcher demo: error: unrecognized arguments: --contrl; did you mean --control?",
        ),
        (["dev", "--zzz"], "dispatcher dev", "dispatcher dev: error: unrecognized arguments: --zzz"),
        (["dev", "x"], "dispatcher dev", "dispatcher dev: error: unrecognized arguments: x"),
        (
            ["send", "x", "--deliver-within", "0"],
            "dispatcher send FILE|-",
            (
                "dispatcher send: error: argument --deliver-within: "
                "'0' is not allowed; allowed is a number, > 0, ≤ 604,800 s"
            ),
        ),
        (
            ["demo", "--messages", "many"],
            "dispatcher demo",
            "dispatcher demo: error: argument --messages: invalid int value: 'many'",
        ),
        (["--zzz", "dev"], "dispatcher dev", "dispatcher dev: error: unrecognized arguments: --zzz"),
        ([], "dispatcher COMMAND", "dispatcher: error: the following arguments are required: COMMAND"),
    ],
)
def test_a_mistake_is_told_in_two_lines(words: list[str], usage: str, error: str) -> None:
    """The command's own usage, short, and what is wrong with the nearest right name."""
    assert run(*words) == (2, [f"usage: {usage} {TELLS_ALL}", error])


def test_an_unknown_command_names_the_known() -> None:
    """Which are few."""
    code, (_, error) = run("sned")
    assert code == 2
    for text in ("'sned'", "'send'", "'demo'", "'dev'"):
        assert text in error


def test_what_follows_a_misspelt_flag_is_not_shown() -> None:
    """It may be a secret."""
    for words in (["--token", "s3cret"], ["--token=s3cret"]):
        code, lines = run("send", "x", *words)
        assert code == 2
        assert "--token" in lines[-1]
        assert "s3cret" not in "".join(lines)


def test_a_misnamed_variable_is_told_in_a_sentence() -> None:
    """With the right name, and without its value."""
    assert run("send", "x", DISPATCHER_TOKEN="s3cret") == (
        2,
        ["dispatcher send: DISPATCHER_TOKEN: there is no such setting; did you mean `QSTASH_TOKEN`?"],
    )


def test_an_error_of_ours_is_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the package raises on purpose is no traceback."""

    def fail(_arguments: object) -> int:
        raise DispatcherError("the local upstream does not start")

    monkeypatch.setattr(demo, "run", fail)
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "dispatcher demo: the local upstream does not start\n"


def test_help_that_nobody_reads_is_no_traceback() -> None:
    """`dispatcher send --help | true`."""
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as unread:
        done = subprocess.run(
            [sys.executable, "-m", "dispatcher", "send", "--help"],
            stdout=unread,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.stderr == b""
