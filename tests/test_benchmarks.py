"""The benchmarks: the upstream reads what it is sent, rows deliver what they claim, the report adds up."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from benchmarks import __main__ as command
from benchmarks import core_cost, growth, growth_loads, report, rows_child
from benchmarks.rows import ROWS, Configuration, Driver, Job, Round, Row
from benchmarks.rows_rounds import Contender, FailedError, Plan, first_size, next_size, timed
from benchmarks.upstream import TOKEN, Parser, RefusedError, Request, Upstream
from benchmarks.upstream_process import report as ask
from benchmarks.upstream_process import spent, upstream_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

AUTHORIZATION = f"Bearer {TOKEN}".encode()
ITEM = b'{"destination":"https://example.com/hook","body":"1"}'
BATCH = b"[" + ITEM + b"," + ITEM + b"]"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """An upstream in a process of its own."""
    with upstream_process() as base:
        yield base


def raw(body: bytes, target: bytes = b"/v2/batch", *lines: bytes, method: bytes = b"POST") -> bytes:
    """One request as it travels."""
    head = [method + b" " + target + b" HTTP/1.1", b"Authorization: " + AUTHORIZATION, *lines]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", body])


def asked(
    upstream: Upstream, body: bytes, path: bytes = b"/v2/batch", method: bytes = b"POST", token: str = TOKEN
) -> tuple[int, Any]:
    """Status and decoded body of one answer."""
    headers = {b"authorization": f"Bearer {token}".encode()}
    answer = upstream.answer(Request(method, path, headers, body))
    head, _, content = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(content) in head
    return int(head.split(b" ")[1]), json.loads(content)


# --------------------------------------------------------------------------------------------- upstream


def test_a_request_may_come_in_any_pieces() -> None:
    """Wherever two requests are cut in two, both are read, in order and whole."""
    data = raw(BATCH) + raw(b"", b"/report", method=b"GET")
    for cut in range(len(data) + 1):
        parser = Parser()
        found = [*parser.feed(data[:cut]), *parser.feed(data[cut:])]
        assert [(one.method, one.path, one.body) for one in found] == [
            (b"POST", b"/v2/batch", BATCH),
            (b"GET", b"/report", b""),
        ]


def test_a_request_may_come_byte_by_byte() -> None:
    """And several at once."""
    parser = Parser()
    found = [one for byte in raw(BATCH) for one in parser.feed(bytes([byte]))]
    assert [one.body for one in found] == [BATCH]
    assert len(list(parser.feed(raw(BATCH) * 3))) == 3


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /v2/batch HTTP/1.1\r\nHost: a\r\n\r\n", 411),
        (b"POST /v2/batch HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"POST /v2/batch HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v2/batch HTTP/1.1\r\nContent-Length: 1x\r\n\r\n", 400),
        (b"POST /v2/batch HTTP/1.0\r\nContent-Length: 0\r\n\r\n", 400),
        (b"POST /v2/batch\r\nContent-Length: 0\r\n\r\n", 400),
        (b"POST /v2/batch HTTP/1.1\r\nno header\r\n\r\n", 400),
        (b"BREW /v2/batch HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nA: " + b"a" * 70_000, 431),
    ],
)
def test_what_is_not_a_request_is_refused(data: bytes, status: int) -> None:
    """With the status that says why."""
    with pytest.raises(RefusedError) as refused:
        list(Parser().feed(data))
    assert refused.value.status == status


def test_leave_to_continue_is_asked_for_once() -> None:
    """However many reads the body takes."""
    parser = Parser()
    data = raw(BATCH, b"/v2/batch", b"Expect: 100-continue")
    assert not list(parser.feed(data[:-10]))
    assert parser.asks_to_continue()
    assert not list(parser.feed(data[-10:-5]))
    assert not parser.asks_to_continue()
    assert [one.body for one in parser.feed(data[-5:])] == [BATCH]


def test_every_message_gets_an_id_of_its_own() -> None:
    """As many as the request had items, none twice, also in later requests."""
    upstream = Upstream()
    ids = []
    for size in (1, 2, 100, 2):
        status, answer = asked(upstream, b"[" + b",".join([ITEM] * size) + b"]")
        assert (status, len(answer)) == (200, size)
        ids += [entry["messageId"] for entry in answer]
    ids.append(asked(upstream, b"text", b"/v2/publish/https://example.com/a?b=c")[1]["messageId"])
    assert len(set(ids)) == len(ids) == 106
    assert (upstream.counts.messages, upstream.counts.requests, upstream.counts.refused) == (106, 5, 0)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"token": "another"}, 401),
        ({"method": b"GET"}, 405),
        ({"path": b"/v2/other"}, 404),
        ({"path": b"/v2/publish/"}, 404),
        ({"body": b"[]"}, 400),
        ({"body": ITEM}, 400),
        ({"body": BATCH[:-1]}, 400),
        ({"body": b'[{"body":"1"}]'}, 400),
        ({"body": b'[{"destination":""}]'}, 400),
        ({"body": b'[{"destination":"a","bodies":"1"}]'}, 400),
        ({"body": b'[{"destination":"a","body":"\xff"}]'}, 400),
        ({"path": b"/_bulk", "body": b'{"index":{}}\n'}, 400),
        ({"path": b"/_bulk", "body": b'{"delete":{}}\n{}\n'}, 400),
    ],
)
def test_what_a_service_would_refuse_is_refused(changed: dict[str, Any], status: int) -> None:
    """And not counted as a message."""
    upstream = Upstream()
    found, answer = asked(upstream, **{"body": BATCH, **changed})
    assert found == status
    assert answer["error"]
    assert (upstream.counts.messages, upstream.counts.refused) == (0, 1)


def test_bulk_answers_for_each_document() -> None:
    """In the form Elasticsearch's client reads."""
    status, answer = asked(Upstream(), b'{"index":{"_index":"a"}}\n{"body":"1"}\n' * 3, b"/a/_bulk", b"PUT")
    assert status == 200
    assert not answer["errors"]
    assert [item["index"]["status"] for item in answer["items"]] == [201] * 3
    assert len({item["index"]["_id"] for item in answer["items"]}) == 3


def test_pipelined_requests_are_answered_in_order() -> None:
    """Over a real connection, also when each answer is late; then the process ends with its block."""
    with upstream_process(0.02) as base:
        before = ask(base)
        address = base.removeprefix("http://").split(":")
        with closing(socket.create_connection((address[0], int(address[1])), timeout=5)) as client:
            client.sendall(raw(BATCH) + raw(b"[]") + raw(BATCH))
            data = b""
            while data.count(b"HTTP/1.1") < 3 or not data.endswith(b"]"):
                data += client.recv(65_536)
        took = spent(before, ask(base))
    assert [part[:4] for part in data.split(b"HTTP/1.1 ")[1:]] == [b"200 ", b"400 ", b"200 "]
    assert (took.messages, took.requests, took.refused) == (4, 2, 1)
    assert 0.0 < took.cpu_seconds < took.seconds
    assert 0.0 < took.idle < 1.0
    with pytest.raises(OSError, match="refused"):
        ask(base)


# ------------------------------------------------------------------------------------------------- rows


def job(row: str, url: str, messages: int = 200) -> Job:
    """A small round."""
    return Job(row, "asyncio", url, TOKEN, Configuration(batch=20), messages, warm_up=40)


@pytest.mark.parametrize("row", ROWS)
def test_each_row_delivers_exactly_its_messages(row: str, url: str) -> None:
    """Confirmed to the client and counted upstream; in full batches, but for those that have none."""
    if (why := ROWS[row].missing()) is not None:
        pytest.skip(why)
    before = ask(url)
    took = timed(job(row, url))
    assert took.messages == 200
    assert took.seconds > 0
    assert took.cpu_seconds >= 0
    assert took.peak_bytes > 1_000_000
    assert 10 <= took.requests <= (200 if ROWS[row].is_single else 60)
    assert spent(before, ask(url)).messages == 240


@pytest.mark.parametrize(
    ("confirmed", "posts", "words"),
    [(19, 1, "confirmed to the client"), (20, 2, "accepted upstream"), (20, 0, "accepted upstream")],
)
def test_a_row_that_loses_or_doubles_fails(
    confirmed: int, posts: int, words: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the other rows can fail."""
    import aiohttp

    @asynccontextmanager
    async def lying(job: Job) -> AsyncIterator[Driver]:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {job.token}"}) as session:

            async def send(count: int) -> int:
                for _ in range(posts if count == 20 else 1):
                    await session.post(f"{job.url}/v2/batch", data=b"[" + b",".join([ITEM] * count) + b"]")
                return confirmed if count == 20 else count

            yield Driver(send)

    monkeypatch.setitem(ROWS, "lying", Row("lying", "peers:lying", 1))
    monkeypatch.setattr(Row, "opener", lambda self: lying)
    with pytest.raises(RuntimeError, match=words):
        asyncio.run(rows_child.timed(job("lying", url, 20)))


def test_a_round_that_fails_says_why(url: str) -> None:
    """The reason is the last line of what the process wrote."""
    with pytest.raises(FailedError, match="unknown"):
        timed(job("unknown", url))


def test_sizes_follow_the_rate() -> None:
    """Whole batches, one for each request at least; for a late upstream no more than it can answer."""
    plan, usual, late = Plan(7, 1.0), Configuration(), Configuration(latency_ms=100)
    took = Round(1_000, 0.01, 0.01, 1, 10, 0.5)
    assert next_size("send", usual, plan, took) == 100_000
    assert next_size("send", usual, plan, Round(1_050, 1.0, 1.0, 1, 11, 0.5)) == 1_000
    assert next_size("send", usual, plan, Round(1, 1.0, 1.0, 1, 1, 0.5)) == 800
    assert first_size("send_many", late, plan) == 4_000
    assert first_size("sdk_single", late, plan) == 40
    assert (
        first_size("send", usual, Plan(7, 1.0, 500))
        == next_size("send", usual, Plan(7, 1.0, 500), took)
        == 500
    )


# ----------------------------------------------------------------------------------------------- report


def rounds(*seconds: float, idle: float = 0.5) -> list[Round]:
    return [Round(1_000, one, one / 2, 2_000_000, 10, idle) for one in seconds]


def test_figures_are_medians_and_ratios() -> None:
    """With the least and the most; compared under the same loop."""
    played = {
        Contender("ceiling", "uvloop"): rounds(0.001, 0.002, 0.004),
        Contender("send", "uvloop"): rounds(0.008, 0.002, 0.004),
        Contender("ceiling", "asyncio"): rounds(0.004),
        Contender("send", "asyncio"): rounds(0.004, idle=0.05),
        Contender("syslog-ng", "none"): rounds(0.001),
    }
    ceiling, send, _, plain, syslog = rows = report.figures(played)
    assert ceiling.of_ceiling == 1.0
    assert send.messages_per_second == report.Spread(250_000.0, 125_000.0, 500_000.0)
    assert (send.wall_us.median, send.cpu_us.median, send.peak_mb) == (4.0, 2.0, 2.0)
    assert (send.of_ceiling, plain.of_ceiling, syslog.of_ceiling) == (0.5, 1.0, 2.0)
    assert send.of_ceiling_by_cpu == 0.5
    assert send.times_sdk_single is None
    (warning,) = report.warnings(rows)
    assert warning.startswith("send (asyncio): the upstream was idle only 5%")
    assert len(report.text_table(rows).splitlines()) == 1 + len(rows)
    assert report.markdown_table(rows).splitlines()[3].split(" | ")[2:4] == ["250,000", "125,000–500,000"]
    assert "250,000" in report.chart(Configuration(), rows, "machine")


def test_the_command_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, JSON with method and machine but without its name, chart; what cannot run is skipped."""
    json_file, svg = tmp_path / "figures.json", tmp_path / "figures.svg"
    words = ["--rows", "ceiling,send_many", "--loop", "asyncio", "--rounds", "1", "--messages", "400"]
    assert command.main([*words, "--json", str(json_file), "--svg", str(svg)]) == 0
    assert "dispatcher: send_many" in capsys.readouterr().out
    written = json.loads(json_file.read_text())
    assert written["method"]["rounds"] == 1
    assert written["method"]["upstream"]
    assert {"cpu", "cores", "kernel", "python", "libraries"} <= written["machine"].keys()
    assert "aiohttp" in written["machine"]["libraries"]
    assert socket.gethostname() not in json_file.read_text()
    (configuration,) = written["configurations"]
    assert configuration["configuration"] == json.loads(msgspec.json.encode(Configuration()))
    assert [row["figures"]["row"] for row in configuration["rows"]] == ["ceiling", "send_many"]
    for row in configuration["rows"]:
        (one,) = row["rounds"]
        assert one["messages"] == 400
        assert row["figures"]["cpu_us"]["median"] == one["cpu_seconds"] / 400 * 1e6
    assert svg.read_text().count("<rect") == 1 + 2


def test_a_row_that_cannot_run_is_skipped_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing package, a missing program."""
    assert Row("a", "peers:a", 1, modules=("no_such_package",)).missing() is not None
    assert "no-such-program" in (Row("a", "peers:a", 1, program="no-such-program").missing() or "")
    monkeypatch.setitem(ROWS, "absent", Row("a", "peers:a", 1, program="no-such-program"))
    assert command.main(["--rows", "absent"]) == 1
    assert "absent: the program `no-such-program` is not installed" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["--rows nothing", "--loop trio", "--bodies big", "--rounds 0"])
def test_a_wrong_flag_says_what_would_be_right(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is measured."""
    with pytest.raises(SystemExit):
        command.parsed(words.split())
    assert "error: argument --" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- core cost and growth


def scaled(cost: core_cost.Cost, factor: float, *ways: str) -> core_cost.Cost:
    """The same with some ways so many times as dear."""
    ways_us = {
        way: {part: us * factor if way in ways else us for part, us in parts.items()}
        for way, parts in cost.ways_us.items()
    }
    return core_cost.Cost(cost.calibration_us, ways_us)


def test_the_cost_of_the_core_is_judged_by_its_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    """A slower machine is no slower core; one more than 15 % dearer in any way is, and it is named."""
    cost = core_cost.measure(rounds=1, messages=core_cost.HELD)
    for way in core_cost.WAYS:
        assert all(cost.us(way, part) > 0 for part in core_cost.PARTS)
    slow = core_cost.Cost(cost.calibration_us * 3, scaled(cost, 3, *core_cost.WAYS).ways_us)
    assert core_cost.judge(slow, cost) == 0
    assert "too slow" not in capsys.readouterr().out
    cheap = scaled(cost, 0.5, *core_cost.WAYS)
    for way in core_cost.WAYS:
        assert core_cost.judge(scaled(cheap, 2.4, way), cost) == 1
        too_slow = [line for line in capsys.readouterr().out.splitlines() if "too slow" in line]
        assert too_slow == [f"{way}: 1.20 × the baseline: too slow"]
        assert core_cost.judge(cost, scaled(cost, 1.2, way)) == 0


@pytest.mark.parametrize("way", core_cost.WAYS)
def test_only_what_is_delivered_has_a_cost(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A core whose requests all fail would be a cheap one."""
    monkeypatch.setattr(Upstream, "accept", lambda *_: b"[]")
    with pytest.raises(RuntimeError, match="delivered 0 of"):
        core_cost.core_round(way, core_cost.HELD)


def test_the_baseline_names_every_way_and_part() -> None:
    """What is compared with is there."""
    assert core_cost.known_cost(core_cost.BASELINE) is not None


def test_without_a_baseline_the_guard_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is one of other ways any; until one is written, which is compared with then."""
    cost = core_cost.Cost(0.1, {way: dict.fromkeys(core_cost.PARTS, 0.2) for way in core_cost.WAYS})
    monkeypatch.setattr(core_cost, "measure", lambda _: cost)
    words = ["--baseline", str(path := tmp_path / "cost.json")]
    assert core_cost.main(words) == 1
    path.write_bytes(msgspec.json.encode(core_cost.Cost(0.1, {"run": cost.ways_us["run"]})))
    assert core_cost.main(words) == 1
    assert "cost.json is no baseline of these ways" in capsys.readouterr().err
    assert core_cost.main([*words, "--update"]) == 0
    assert core_cost.main(words) == 0
    printed = capsys.readouterr().out
    assert all(f"{way}: 1.00 × the baseline" in printed for way in core_cost.WAYS)


@pytest.mark.parametrize("name", growth.dimensions(0))
def test_the_loads_of_growth_deliver_everything(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in few and in many; they raise if a message is missing."""
    for constant in ("MESSAGES", "WARM_UP", "STEP"):
        monkeypatch.setattr(growth_loads, constant, 100)
    load = growth.dimensions(0)[name].load
    before = ask(url)
    assert growth._cost(load, url, 3) > 0
    assert growth._cost(load, url, 300) > 0
    assert spent(before, ask(url)).messages >= 400


def test_memory_and_wakeups_are_measured(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A held message takes something; a bound that is not kept is missed."""
    monkeypatch.setattr(growth_loads, "CHECKED_HELD", 500)
    monkeypatch.setattr(growth_loads, "WARM_UP", 100)
    finding = growth.memory(url)
    assert 50 < finding.value < 1_000
    assert growth.wakeups(url, 0.05).value >= 0
    assert growth.Finding("a", "b", 1.0, 1.0).holds
    assert not growth.Finding("a", "b", 1.1, 1.0).holds
