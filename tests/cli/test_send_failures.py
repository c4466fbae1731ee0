"""What `dispatcher send` does with lines that cannot be delivered, and with those files afterwards."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from dispatcher.cli._records import Problem, failed_line
from dispatcher.errors import MessageInvalid
from dispatcher.ndjson import LineTooLong
from dispatcher.sdk import line_to_message
from dispatcher.testing import local_upstream
from tests.cli.send_support import URL, items, read, send, write

if TYPE_CHECKING:
    from pathlib import Path

BAD: list[tuple[dict[str, Any] | bytes, str, str]] = [
    (b'{"destination": "https://a.example"', "BadLine", "not JSON: unexpected end of data at column 36"),
    (b'{"destination": "\xff"}', "BadLine", "not UTF-8: byte 0xff at byte 18 of the line"),
    (b'["destination"]', "MessageInvalid", "a line is a JSON object, not an array"),
    ({"body": "x"}, "MessageInvalid", "the destination is missing"),
    ({"destination": "https://"}, "MessageInvalid", "destination"),
    ({"destination": URL, "body": {"a": 1}}, "MessageInvalid", "`body` is an object"),
    ({"destination": URL, "url": URL}, "MessageInvalid", "not both"),
    ({"url": URL, "deduplication_id": "a:b"}, "MessageInvalid", "deduplication id: ':' (U+003A) at index 1"),
    ({"url": URL, "deduplication_id": "a b"}, "MessageInvalid", "deduplication id: ' ' (U+0020) at index 1"),
    (
        {"destination": URL, "headers": {"Upstash-Deduplication-Id": "ab:"}},
        "MessageInvalid",
        "':' (U+003A) at index 2",
    ),
    (
        {"destination": URL, "headers": {"Hello": "1"}},
        "MessageInvalid",
        "`Hello` would not be forwarded; in a line's `headers` it is written `Upstash-Forward-Hello`",
    ),
    (
        {"destination": URL, "deduplication_id": "a"},
        "MessageInvalid",
        "beside `destination`, put `Upstash-Deduplication-Id` into `headers`",
    ),
    ({"destination": URL, "delay": 3}, "MessageInvalid", "`delay` stands beside `url`"),
    ({"destination": URL, "body": "x" * 1_048_577}, "MessageTooLarge", "1048577 bytes, the limit is 1048576"),
    ({"destination": URL, "bdy": "x"}, "MessageInvalid", "did you mean `body`"),
]


@pytest.mark.anyio
async def test_bad_lines_are_named_and_stop_nothing(tmp_path: Path) -> None:
    """Each with its number and its own clear error, while everything else is delivered."""
    lines: list[dict[str, Any] | bytes] = []
    for number, (line, _, _) in enumerate(BAD):
        lines += [{"destination": URL, "body": f"{number}"}, line]
    name = write(tmp_path / "in", lines)
    words = (name, "--receipts", str(tmp_path / "out"), "--failures", str(tmp_path / "failed"))
    async with local_upstream() as upstream:
        done = await send(*words, url=upstream.url)
        bodies = {row.body for row in upstream.accepted()}
        assert upstream.summary()["refused"] == 0
    assert done.code == 1
    assert bodies == {str(number).encode() for number in range(len(BAD))}
    receipts = read(tmp_path / "out")
    assert [receipt["line"] for receipt in receipts] == list(range(1, 2 * len(BAD) + 1))
    assert all(receipt["messageId"] for receipt in receipts[::2])
    for receipt, (_, kind, text) in zip(receipts[1::2], BAD, strict=True):
        assert (receipt["error"], receipt["certainty"], receipt["attempts"]) == (kind, "not_sent", 0)
        assert text in receipt["reason"]
        assert f"line {receipt['line']}: {kind}: {receipt['reason']}\n" in done.stderr
    assert f"{len(BAD)} delivered, {len(BAD)} failed" in done.stderr
    assert "Options(" not in done.stderr
    assert "as line" not in done.stderr
    assert f"({len(BAD)} bad lines)" in done.stderr
    _check_that_nothing_is_lost(read(tmp_path / "failed"))


def _check_that_nothing_is_lost(failed: list[dict[str, Any]]) -> None:
    assert [line["_failure"]["line"] for line in failed] == [2 * n for n in range(1, len(BAD) + 1)]
    for line, (given, kind, text) in zip(failed, BAD, strict=True):
        failure = line.pop("_failure")
        assert (failure["error"], failure["certainty"], failure["attempts"]) == (kind, "not_sent", [])
        assert text in failure["reason"]
        if isinstance(given, dict):
            assert line == given
        elif b"\xff" in given:
            assert base64.b64decode(line["_raw_base64"]) == given
        else:
            assert line == {"_raw": given.decode()}


@pytest.mark.anyio
async def test_equal_reasons_are_told_once(tmp_path: Path) -> None:
    """The first line in full and the others, over all blocks, as a count."""
    other = b'{"body": 1}'
    name = write(tmp_path / "in", [*[b"{"] * 1_000, other, *[b"{"] * 1_000, *items(1)])
    async with local_upstream() as upstream:
        done = await send(name, url=upstream.url)
    assert done.code == 1
    assert done.stderr.count("BadLine: not JSON") == 1
    assert "line 1: BadLine: not JSON" in done.stderr
    assert "as line 1: 1,999 more lines" in done.stderr
    assert "line 1,001: MessageInvalid: the destination is missing" in done.stderr
    assert "as line 1,001" not in done.stderr
    assert "2,002 lines: 1 delivered, 2,001 failed" in done.stderr
    assert "failed: 2,000 BadLine, 1 MessageInvalid (2,001 bad lines)" in done.stderr


@pytest.mark.anyio
async def test_many_different_reasons_are_only_counted(tmp_path: Path) -> None:
    """Twenty in full, the rest in the sum."""
    name = write(tmp_path / "in", [b" " * number + b"{" for number in range(1_000)])
    async with local_upstream() as upstream:
        done = await send(name, url=upstream.url)
    assert done.code == 1
    assert done.stderr.count("BadLine: not JSON") == 20
    assert done.stderr.count("are only counted") == 1
    assert "1,000 lines: 0 delivered, 1,000 failed" in done.stderr


@pytest.mark.anyio
async def test_failures_are_sent_again_as_they_are(tmp_path: Path) -> None:
    """The second run delivers what the first could not, under the ids of the first."""
    lines: list[dict[str, Any] | bytes] = [
        {"destination": URL, "body": "POISON 1", "headers": {"Upstash-Label": "x"}},
        {"url": URL, "body": {"POISON": 2}, "delay": 3},
        {"destination": URL, "body": "POISON 3", "headers": {"upstash-deduplication-id": "mine"}},
        {"url": URL, "body": "POISON 4", "deduplication_id": "mine-too"},
        {"url": URL, "body": "POISON 5", "content_based_deduplication": True},
        *items(10),
    ]
    name = write(tmp_path / "in", lines)
    first, second = tmp_path / "failed", tmp_path / "failed again"
    async with local_upstream(faults="poison_400=POISON") as upstream:
        done = await send(name, "--failures", str(first), url=upstream.url)
        assert done.code == 1, done.stderr
        assert "line 1: MessageRejected: " in done.stderr
        assert len(upstream.accepted()) == 10
        upstream.set_faults(None)
        again = await send(str(first), "--failures", str(second), "--receipts", "-", url=upstream.url)
        accepted = upstream.accepted()[10:]
    assert again.code == 0, again.stderr
    assert second.read_bytes() == b""
    failed = read(first)
    assert all(line["_failure"]["certainty"] == "not_accepted" for line in failed)
    assert all(line["_failure"]["status"] == 400 for line in failed)
    assert all(line["_failure"]["attempts"][-1]["outcome"].startswith("400") for line in failed)
    ids = [row.deduplication_id for row in accepted]
    assert ids[0] == failed[0]["headers"]["Upstash-Deduplication-Id"]
    assert failed[0]["headers"]["Upstash-Label"] == "x"
    assert ids[1] == failed[1]["deduplication_id"]
    assert failed[2]["headers"] == {"upstash-deduplication-id": "mine"}
    assert ids[2:4] == ["mine", "mine-too"]
    assert "deduplication_id" not in failed[4]


@pytest.mark.anyio
async def test_an_unknown_outcome_is_not_doubled(tmp_path: Path) -> None:
    """What the service took without saying so is known to it when the line comes again."""
    name, failed = write(tmp_path / "in", items(50)), tmp_path / "failed"
    async with local_upstream(faults="error_after=1") as upstream:
        done = await send(name, "--failures", str(failed), "--deliver-within", "1", url=upstream.url)
        assert done.code == 1, done.stderr
        upstream.set_faults(None)
        again = await send(str(failed), "--receipts", str(tmp_path / "out"), url=upstream.url)
        assert again.code == 0, again.stderr
        assert len(upstream.accepted()) == 50
    assert {line["_failure"]["certainty"] for line in read(failed)} == {"unknown"}
    assert all(receipt["deduplicated"] for receipt in read(tmp_path / "out"))


@pytest.mark.anyio
async def test_no_id_is_invented(tmp_path: Path) -> None:
    """With `--deduplication off` a failed line goes out as it came in."""
    lines: list[dict[str, Any] | bytes] = [{"destination": URL, "body": "1"}, {"url": URL, "body": "2"}]
    name, failed = write(tmp_path / "in", lines), tmp_path / "failed"
    async with local_upstream(faults="error_after=1") as upstream:
        done = await send(name, "--failures", str(failed), "--deduplication", "off", url=upstream.url)
    assert done.code == 1
    again = read(failed)
    assert [line.pop("_failure")["error"] for line in again] == ["OutcomeUnknown", "OutcomeUnknown"]
    assert again == lines


@pytest.mark.anyio
async def test_an_uncorrected_bad_line_keeps_its_text(tmp_path: Path) -> None:
    """Sent again as it is, it is refused with the cure, and written out again whole."""
    name, first, second = write(tmp_path / "in", [b'{"url":']), tmp_path / "first", tmp_path / "second"
    async with local_upstream() as upstream:
        await send(name, "--failures", str(first), url=upstream.url)
        done = await send(str(first), "--failures", str(second), url=upstream.url)
    assert done.code == 1
    assert "put the corrected text of `_raw` in its place" in done.stderr
    (line,) = read(second)
    assert line["_raw"] == '{"url":'
    assert line["_failure"]["error"] == "MessageInvalid"


def test_a_line_that_was_not_kept_is_refused_again() -> None:
    """Of a line above the bound only its facts go out; they are no message, and say so."""
    written = failed_line(7, LineTooLong(1 << 28), Problem("BadLine", "the line has too many bytes"))
    line = orjson.loads(written)
    assert line["_raw"] is None
    assert line["_failure"]["line"] == 7
    with pytest.raises(MessageInvalid, match="could not be read before"):
        line_to_message(line)


@pytest.mark.anyio
async def test_secrets_stay_out_of_what_is_said(tmp_path: Path) -> None:
    """No body, no query and no token on standard error or among the receipts."""
    name = write(
        tmp_path / "in",
        [
            {"destination": f"{URL}?key=s3cret-query", "body": "POISON s3cret-body"},
            b'{"destination": "s3cret-line',
            {"destination": URL, "headers": {"Hello": "s3cret-header"}},
        ],
    )
    async with local_upstream(token="s3cret-token", faults="poison_400=POISON") as upstream:
        done = await send(name, "--receipts", "-", url=upstream.url, token="s3cret-token")
    assert done.code == 1
    assert done.stderr.count("\ndispatcher send: line") + done.stderr.startswith("dispatcher send: line") == 3
    assert "s3cret" not in done.stderr + done.stdout.decode()
