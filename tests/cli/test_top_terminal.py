"""`dispatcher top` in a real pseudo-terminal, before real sidecars: figures, keys, signals, sizes, losses."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from dispatcher.testing import local_upstream
from tests.cli.top_support import Top, answering, example, stream, watching
from tests.sidecar.daemon_support import TOKEN, Sidecar, environment, serving, write

if TYPE_CHECKING:
    from pathlib import Path

SECOND = "the-second-token"
MARKUP = "[bold red]x[/] [link=http://192.0.2.1]y[/link] :skull: "
HOSTILE = f"{MARKUP}\x1b]0;taken\x07\x1b[31mred\x1b[2J\x9b2J\r\n\u202eltr"
HARMLESS = f"{MARKUP} ]0;taken [31mred [2J 2J ltr"


async def status(sidecar: Sidecar) -> dict[str, Any]:
    """What the admin listener says."""
    async with sidecar.session.get(f"{sidecar.admin}/status") as response:
        found: dict[str, Any] = await response.json()
        return found


async def load(sidecar: Sidecar, messages: int) -> None:
    """Publishes at once, and one that the upstream rejects."""
    bodies = [*(f"{number}" for number in range(messages)), "POISON"]
    answers = await asyncio.gather(*(sidecar.publish(body) for body in bodies))
    assert [code for code, _ in answers] == [200] * messages + [400]


def columns(top: Top) -> int:
    """How many lists stand side by side; 0 where something else is on the screen."""
    titles = ("Recent failures", "Intake by route")
    return max(sum(title in row for title in titles) for row in top.screen.display)


@pytest.mark.anyio
async def test_the_screen_says_what_the_status_says(tmp_path: Path) -> None:
    """Under load, narrow and wide, with an outbox; a halt in words and colour, and its end; then `q`."""
    outbox, token = str(tmp_path / "outbox.db"), tmp_path / "token"
    write(token, TOKEN)
    env = environment(None, None, DISPATCHER_TOKEN_FILE=str(token))
    async with (
        local_upstream(token=TOKEN, faults="poison_400=POISON latency=constant(5ms)") as upstream,
        serving("--outbox", outbox, env={**env, "QSTASH_URL": upstream.url}) as sidecar,
        watching(sidecar.admin) as top,
    ):
        await top.shows(" Ready ", "0 taken", "no message has failed")
        assert top.is_drawn_on
        assert top.link == "live"
        await load(sidecar, 250)
        await top.shows("251 taken", "250 confirmed", "1 in all", "1 dead letter ")
        said = await status(sidecar)
        held, limit = said["held"], said["in_flight"]["limit"]
        await top.shows(
            f"0 of {held['messages_limit']:,} · nothing waits",
            f"0 of {limit} requests",
            f"version {said['version']}",
            f"upstream 200 ×{said['requests']['by_code']['200']}",
            f"publish  200 ×{said['intake']['requests']['publish']['200']} · 400 ×1",
            "×1  rejected (400) not accepted",
        )
        assert "█" in top.text  # of the last minute
        row = top.text.index("Recent failures")
        assert "was rejected with 400" in " ".join(top.text[row : row + 400].split())
        top.resize(200, 50)
        await top.until(lambda: columns(top) == 2 and "q ends" in top.screen.display[49])
        top.resize(80, 24)
        await top.until(lambda: columns(top) == 1 and "q ends" in top.screen.display[23])

        upstream.set_token(SECOND)
        waits = asyncio.create_task(sidecar.publish("waits"))
        await top.shows(" Halted ", "Halted. The upstream refuses the token or the URL", "SIGHUP")
        assert top.colours_of(" Halted ") == {("white", "red")}
        write(token, SECOND)
        sidecar.signal(signal.SIGHUP)
        assert (await waits)[0] == 200
        await top.shows(" Ready ")
        assert top.colours_of(" Ready ") == {("black", "green")}
        shown = top.written.decode()
        top.press(b"q")
        assert await top.ended() == 0
        assert top.modes == top.modes_before
    for secret in (TOKEN, "POISON", SECOND):
        assert secret not in shown


@pytest.mark.anyio
async def test_a_listener_that_goes_and_comes_back() -> None:
    """Killed, started again, ended: each is said, and the last figures stay; Ctrl-C ends it."""
    async with local_upstream(token=TOKEN) as upstream, serving(url=upstream.url) as sidecar:
        port = sidecar.admin.rpartition(":")[2]
        async with watching(sidecar.admin) as top:
            await sidecar.publish()
            await top.shows("1 taken")
            sidecar.signal(signal.SIGKILL)
            await top.shows("Lost, as of ", "1 taken")
            assert top.link == "lost"
            await top.shows("nobody listens there")
            async with serving("--admin-port", port, url=upstream.url) as other:
                await top.until(lambda: top.link == "live")
                await top.shows("0 taken")
                assert "Lost" not in top.text
                other.signal(signal.SIGTERM)
                await top.shows("the sidecar has ended")
            top.press(b"\x03")
            assert await top.ended() == 0
            assert top.modes == top.modes_before


@pytest.mark.anyio
async def test_several_listeners_are_rows_and_their_sum() -> None:
    """One that is there, one that is not; and a terminal that is very small."""
    nobody = "http://127.0.0.1:1"
    async with (
        answering(stream(example(gate={"state": "quota"}))) as url,
        watching(url, nobody, url, size=(100, 24)) as top,
    ):
        await top.shows("3 listeners, 2 live", f"{nobody}: nobody listens there")
        rows = [row.split() for row in top.screen.display]
        figures = ["1,234", "1,200", "7", "9,000", "2.5", "s", "12/16", "1.5", "s", "1"]
        assert rows.count([url, "Quota", "spent", *figures]) == 2
        assert [nobody, "not", "heard"] in [row[:3] for row in rows]
        figures = ["2,469", "2,400", "14", "18,000", "2.5", "s", "24/32", "1.5", "s", "2"]
        assert ["all", *figures] in rows
        top.resize(18, 4)
        await top.until(
            lambda: top.screen.display[0] == "dispatcher  3 list" and "q ends" in top.screen.display[3]
        )
        top.process.send_signal(signal.SIGTERM)
        assert await top.ended() == 128 + signal.SIGTERM


@pytest.mark.anyio
async def test_hostile_texts_stay_text() -> None:
    """Markup, colours, titles and clearing in everything a listener says: shown, and not obeyed."""
    failure = {**example()["intake"]["recent_failures"][0], "reason": HOSTILE, "outcome": HOSTILE[:9]}
    report = example(
        name=HOSTILE,
        gate={"state": "halted", "reason": HOSTILE},
        intake={"recent_failures": [failure], "requests": {HOSTILE: {HOSTILE: 1}}},
    )
    async with answering(stream(report)) as url, watching(url, size=(200, 50)) as top:
        await top.shows("×7  [bold red (400) not accepted  [bold red]x[/] [link=", f"({HARMLESS})")
        assert top.screen.title == ""
        assert top.colours_of("[31mred [2J 2J ltr  version") == {("default", "default")}
        for sequence in (b"\x1b]", b"\x1b[2J", b"\xc2\x9b", b"\xe2\x80\xae", b"\x07"):
            assert sequence not in top.written


@pytest.mark.anyio
async def test_without_colours() -> None:
    """With NO_COLOR the states are words only."""
    answer = stream(example(gate={"state": "outage"}))
    async with answering(answer) as url, watching(url, NO_COLOR="1") as top:
        await top.shows(" Outage ")
        cells = [cell for row in top.screen.buffer.values() for cell in row.values()]
        assert {(cell.fg, cell.bg) for cell in cells} == {("default", "default")}


@pytest.mark.anyio
async def test_it_is_suspended_and_goes_on() -> None:
    """Ctrl-Z gives the terminal back as it was; told to go on it draws again."""
    async with answering(stream(example())) as url, watching(url) as top:
        await top.until(lambda: top.link == "live")
        top.press(b"\x1a")
        process = psutil.Process(top.process.pid)
        await top.until(lambda: process.status() == psutil.STATUS_STOPPED and not top.is_drawn_on)
        assert top.modes == top.modes_before
        top.process.send_signal(signal.SIGCONT)
        await top.until(lambda: top.is_drawn_on)
        await top.until(lambda: top.link == "live")
        top.press(b"q")
        assert await top.ended() == 0
        assert top.modes == top.modes_before
