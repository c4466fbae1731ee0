"""What a message costs in the core, relative to a calibration loop of the same run: the guard of its speed.

Encodes, admits, starts and settles 100,000 messages, without a loop, a socket or a clock, and a fixed piece
of other work in between. The ratio of the two is about the same on every machine; it is compared with that in
`core_cost.json`. Exit 1 if it has grown by more than 15 %. The best of several rounds counts on either side:
what disturbs a round only makes it longer.

    python -m benchmarks.core_cost            # compare
    python -m benchmarks.core_cost --update   # what it costs now is the measure from now on
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import deque
from itertools import count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import msgspec
import orjson
from msgspec import Struct

from benchmarks.upstream import Upstream
from dispatcher.config import Config
from dispatcher.core.batch import Reply
from dispatcher.core.engine import Engine
from dispatcher.core.replies import read_reply
from dispatcher.core.wire import Encoder
from dispatcher.delivery import Delivery
from dispatcher.message import Message, Receipt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.core.batch import Batch
    from dispatcher.core.wire import Encoded

BASELINE: Final = Path(__file__).with_name("core_cost.json")
MESSAGES: Final = 100_000
HELD: Final = 5_000
"""Messages between one poll and the next: in fifty batches."""
ROUNDS: Final = 9
WORSE_AT_MOST: Final = 1.15
CALIBRATION_STEPS: Final = 100_000
PARTS: Final = ("encode", "admit", "start", "body", "read", "settle")
DESTINATION: Final = "https://example.com/hook"
BODY: Final = "x" * 200


class Cost(Struct, frozen=True):
    """CPU µs: of a step of the calibration loop, and of a message by part."""

    calibration_us: float
    parts_us: dict[str, float]

    @property
    def ratio(self) -> float:
        """A message, in steps of the calibration loop."""
        return sum(self.parts_us.values()) / self.calibration_us


class Stopwatch:
    """CPU time by part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._since = 0.0

    def start(self) -> None:
        """From now on."""
        self._since = time.process_time()

    def stop(self, part: str) -> None:
        """What passed since belongs to this part."""
        now = time.process_time()
        self.seconds[part] += now - self._since
        self._since = now


class Core:
    """An engine under load, driven as the dispatcher and its pump do."""

    def __init__(self) -> None:
        config = Config.load(
            env={}, token="t", limit={"mode": "fixed", "max_in_flight": 64}, queue={"max_messages": HELD}
        )
        numbers = count()
        self.engine = Engine(config, Random(1))
        self.encoder = Encoder(lambda: f"{next(numbers):032x}", draws_ids=True, max_message_bytes=1_048_576)
        self.now = 1_000.0
        self._upstream = Upstream()

    def cycle(self, messages: list[Message], watch: Stopwatch) -> list[Delivery]:
        """A few thousand messages from their producers to their receipts."""
        watch.start()
        encoded = [self.encoder.encode(message) for message in messages]
        watch.stop("encode")
        deliveries = list(self._admitted(messages, encoded))
        watch.stop("admit")
        started = self.engine.poll(self.now).start
        watch.stop("start")
        replies = [self._reply(batch, watch) for batch in started]
        watch.start()
        for batch, reply in zip(started, replies, strict=True):
            read_reply(reply.body, len(batch.entries), is_group=False)
        watch.stop("read")
        self._settle(started, replies)
        watch.stop("settle")
        self.now += 0.01
        return deliveries

    def _admitted(self, messages: list[Message], encoded: list[Encoded]) -> Iterator[Delivery]:
        """As `Dispatcher._make` and `_admit` do."""
        engine, now = self.engine, self.now
        for message, one in zip(messages, encoded, strict=True):
            delivery = Delivery(
                message,
                one.data,
                message.queue or None,
                one.deduplication_id,
                one.idempotent,
                one.owns_id,
                now,
                now + 120.0,
                one.single,
            )
            if not engine.room.try_take(len(delivery.data)):
                raise RuntimeError("the core has no room for what it should hold")
            engine.offer(delivery)
            yield delivery

    def _settle(self, started: list[Batch], replies: list[Reply]) -> None:
        """As the pump does: complete, poll, wake."""
        for batch, reply in zip(started, replies, strict=True):
            self.engine.complete(batch, reply, self.now)
        for entry in self.engine.poll(self.now).settled:
            assert isinstance(entry, Delivery)
            entry.wake()

    def _reply(self, batch: Batch, watch: Stopwatch) -> Reply:
        watch.start()
        body = batch.body()
        watch.stop("body")
        return Reply(200, self._upstream.accept(body))


def calibrate() -> None:
    """Work of the kinds that the core does: small objects, a queue, arithmetic, JSON. Must never change."""
    waiting: deque[dict[str, object]] = deque()
    total = 0
    for number in range(CALIBRATION_STEPS):
        waiting.append({"number": number, "text": "calibration"})
        if number & 7 == 7:
            for _ in range(8):
                total += len(orjson.dumps(waiting.popleft()))
    assert total


def measure(rounds: int = ROUNDS, messages: int = MESSAGES) -> Cost:
    """The best of some rounds of either, interleaved."""
    calibrations: list[float] = []
    parts: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        gc.collect()
        began = time.process_time()
        calibrate()
        calibrations.append((time.process_time() - began) / CALIBRATION_STEPS * 1e6)
        parts.append(core_round(messages))
    best = min(parts[1:], key=lambda one: sum(one.values()))
    return Cost(min(calibrations[1:]), best)


def core_round(messages: int) -> dict[str, float]:
    """CPU µs a message of each part; reading replies is inside settling, and taken out of it."""
    core, watch = Core(), Stopwatch()
    for _ in range(messages // HELD):
        batch = [Message(DESTINATION, BODY) for _ in range(HELD)]
        deliveries = core.cycle(batch, watch)
        if not all(isinstance(delivery.outcome, Receipt) for delivery in deliveries):
            raise RuntimeError("the core did not deliver every message")
    done = messages // HELD * HELD
    cost = {part: seconds / done * 1e6 for part, seconds in watch.seconds.items()}
    cost["settle"] = max(0.0, cost["settle"] - cost["read"])
    return cost


def table(cost: Cost, baseline: Cost | None) -> str:
    """Each part in µs and in steps of the calibration loop, beside the baseline's."""
    lines = [f"calibration: {cost.calibration_us:.3f} µs a step; a message in the core:"]
    for part, spent in (*cost.parts_us.items(), ("together", sum(cost.parts_us.values()))):
        line = f"  {part:9} {spent:7.3f} µs  {spent / cost.calibration_us:6.2f} steps"
        if baseline is not None:
            known = {**baseline.parts_us, "together": sum(baseline.parts_us.values())}
            if part in known:
                line += f"  (baseline {known[part] / baseline.calibration_us:.2f})"
        lines.append(line)
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """Measure; compare or update."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.core_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--update", action="store_true", help="write the baseline")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="another file than core_cost.json")
    given = parser.parse_args(words)
    known: Path = given.baseline
    baseline = msgspec.json.decode(known.read_bytes(), type=Cost) if known.exists() else None
    cost = measure(given.rounds)
    print(table(cost, baseline))
    if given.update:
        known.write_bytes(msgspec.json.format(msgspec.json.encode(cost), indent=2) + b"\n")
        return 0
    if baseline is None:
        print("there is no baseline: `--update` writes one", file=sys.stderr)
        return 1
    return judge(cost, baseline)


def judge(cost: Cost, baseline: Cost) -> int:
    """1 if a message has become too dear."""
    change = cost.ratio / baseline.ratio
    is_worse = change > WORSE_AT_MOST
    print(f"{change:.2f} × the baseline; allowed are {WORSE_AT_MOST:.2f}{': too slow' if is_worse else ''}")
    return int(is_worse)


if __name__ == "__main__":
    sys.exit(main())
