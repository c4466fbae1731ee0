"""`dispatcher top` without a terminal, wrong usage, and listeners that say odd things."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from dispatcher.cli import _top_feed, main
from dispatcher.cli._top_feed import Listener
from tests.cli.send_support import environment
from tests.cli.top_support import answering, example, stream

if TYPE_CHECKING:
    from collections.abc import Sequence

WITHOUT_RICH = (
    "import sys; sys.modules['rich'] = None; from dispatcher.cli import main; sys.exit(main(sys.argv[1:]))"
)
STREAM = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


async def top(*words: str, python: Sequence[str] = ("-m", "dispatcher"), **env: str) -> tuple[int, str, str]:
    """Run `dispatcher top` without a terminal; its exit code and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *python, "top", *words),
        env=environment(None, None, **env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.anyio
async def test_without_a_terminal_it_prints_once() -> None:
    """With `--once` or not, whole lines and no escape sequence, even where colours are asked for."""
    async with answering(stream(example())) as url:
        for words in (["--once", url], [url]):
            code, out, err = await top(*words, FORCE_COLOR="1", COLUMNS="40", TERM="xterm")
            assert (code, err) == (0, "")
            assert "\x1b" not in out
            assert out.startswith(f" Ready   dispatcher  version 0.1.0 · up 1 h 2 min  {url}\n")
            assert "the message to https://example.com/hook was rejected with 400: invalid\n" in out


@pytest.mark.anyio
async def test_once_tells_who_was_not_heard() -> None:
    """On standard error, with exit 1; the others are printed."""
    nobody = "http://127.0.0.1:1"
    told = f"dispatcher top: {nobody}: nobody listens there\n"
    assert await top("--once", nobody) == (1, "", told)
    async with answering(stream(example())) as url:
        code, out, err = await top("--once", url, nobody)
    assert (code, err) == (1, told)
    assert "2 listeners, 1 of 2 heard" in out
    assert nobody in out


@pytest.mark.anyio
async def test_what_is_missing_is_told() -> None:
    """Without rich: what to install, exit 2; and `--help` works all the same."""
    code, out, err = await top(python=("-c", WITHOUT_RICH))
    assert (code, out) == (2, "")
    assert err.startswith("dispatcher top: it draws with rich, which is not installed: pip install 'qstash-")
    assert err.count("\n") == 1
    code, out, _ = await top("--help", python=("-c", WITHOUT_RICH))
    assert code == 0
    assert "http://127.0.0.1:8091" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["http://user:s3cret@127.0.0.1:8091"],
            "wanted is http://HOST:PORT of an admin listener, without user",
        ),
        (["http://127.0.0.1:8091/?token=s3cret"], "wanted is http://HOST:PORT"),
        (["127.0.0.1:8091"], "wanted is http://HOST:PORT"),
        (["http://127.0.0.1:99999"], "wanted is http://HOST:PORT"),
        (["http://127.0.0.1:s3cret"], "wanted is http://HOST:PORT"),
        (["http://a b:1"], "wanted is http://HOST:PORT"),
        (["--interval", "0"], "argument --interval: '0' is not allowed; allowed is 0.1 to 3,600 s"),
        (["--interval", "nan"], "argument --interval: 'nan' is not allowed"),
    ],
)
def test_wrong_usage(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2, what would be right, and no secret."""
    try:
        code: object = main(["top", *words])
    except SystemExit as error:  # of the parser
        code = error.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert told in said.err
    assert "s3cret" not in said.err


ODD = [
    (b"SSH-2.0-OpenSSH_9.2\r\n", "its answer is not HTTP"),
    (
        b'HTTP/1.0 401 No\r\n\r\n{"error": "no\x1b[31m"}',
        'it answers 401: {"error": "no [31m"}; is it an admin',
    ),
    (b"HTTP/1.1 503 Busy\r\n\r\n32 listen already\n", "it answers 503: 32 listen already"),
    (b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>", "its answer is no stream of events; is it"),
    (b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 200, "its answer has no end of headers"),
    (STREAM, "the connection was closed"),
    (STREAM + b"event: end\ndata: {}\n\n", "the sidecar has ended"),
    (STREAM + b"event: status\ndata: {\n\n", "what it says is not understood"),
    (STREAM + b"event: status\ndata: []\n\n", "what it says is not understood (Expected `object`"),
    (STREAM + b"event: status\ndata: {}\n\n", "required field `version`"),
    (stream(example(held=None)), "Expected `object`, got `null` - at `$.held`"),
    (stream(example(at="now\x1b[2J")), "Expected `float`, got `str` - at `$.at`"),
    (stream(example()).replace(b"3725.0", b"1e999"), "what it says is not understood"),
    (
        STREAM + b'event: history\ndata: {"at":[1],"taken":[],"delivered":[],"failed":[]}\n\n',
        "not understood",
    ),
    (STREAM + b"data: " + b"x" * 5_000_000, "its answer has lines without an end"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("answer", "told"), ODD, ids=[told for _, told in ODD])
async def test_odd_answers_are_told(answer: bytes, told: str) -> None:
    """Whatever answers there: no traceback, no control character, and what it may be."""
    async with answering(answer, hang_up=True) as url:
        listener = Listener(url)
        await listener.hear()
    assert told in listener.trouble
    assert listener.trouble.isprintable()
    assert listener.report is None


@pytest.mark.anyio
async def test_silence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes the connection and says nothing, or no more, is given up after a while."""
    monkeypatch.setattr(_top_feed, "SILENCE_SECONDS", 0.1)
    for answer in (b"", STREAM, STREAM + b"event: status\n"):
        async with answering(answer) as url:
            listener = Listener(url)
            await listener.hear()
        assert listener.trouble == "it has said nothing for 0.1 s"


@pytest.mark.anyio
async def test_a_listener_is_asked_below_its_path_and_only_that() -> None:
    """The request has a path, a host and nothing that identifies anybody."""
    asked = list[bytes]()
    async with answering(stream(example()), asked=asked) as url:
        listener = Listener(f"{url}/sidecars/one/")
        await listener.hear()
    host = f"Host: {url.removeprefix('http://')}"
    request = f"GET /sidecars/one/status/stream HTTP/1.0\r\n{host}\r\nAccept: text/event-stream\r\n\r\n"
    assert asked == [request.encode()]
    assert listener.report is not None
