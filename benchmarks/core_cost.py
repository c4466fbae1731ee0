"""What a message costs in the core, relative to a calibration loop of the same run: the guard of its speed.

Encodes, admits, starts and settles 100,000 messages in each of the ways that messages go, without a loop, a
socket or a clock, and a fixed piece of other work in between. The ratio of a way to that work is about the
same on every machine; it is compared with that in `core_cost.json`. Exit 1 if one has grown by more than
15 %. The best of several rounds counts on either side: what disturbs a round only makes it longer.

    python -m benchmarks.core_cost            # compare
    python -m benchmarks.core_cost --update   # what it costs now is the measure from now on
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import deque
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final, cast

import msgspec
import orjson
from msgspec import Struct

from benchmarks.upstream import Upstream
from dispatcher.admission import Admission
from dispatcher.config import Config
from dispatcher.core.batch import Reply
from dispatcher.core.engine import Engine
from dispatcher.core.wire import Encoder
from dispatcher.delivery import Delivery, DeliveryRun, Home
from dispatcher.identity import id_source
from dispatcher.message import Message, Receipt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dispatcher.core.batch import Batch, Step
    from dispatcher.delivery import HandedRun

BASELINE: Final = Path(__file__).with_name("core_cost.json")
MESSAGES: Final = 100_000
HELD: Final = 5_000
"""Messages that are handed in together: fifty batches."""
QUEUES: Final = 100
ROUNDS: Final = 9
WORSE_AT_MOST: Final = 1.15
CALIBRATION_STEPS: Final = 100_000
WAYS: Final = ("run", "single", "queued")
"""As `send_many` and `stream` hand them in; as `put_nowait` and `send` do; the same for FIFO queues."""
PARTS: Final = ("encode", "admit", "start", "body", "settle")
DESTINATION: Final = "https://example.com/hook"
BODY: Final = "x" * 200


class Cost(Struct, frozen=True):
    """CPU µs: of a step of the calibration loop, and of a message by way and part."""

    calibration_us: float
    ways_us: dict[str, dict[str, float]]

    def us(self, way: str, part: str) -> float:
        """Of one part, or of all of them `together`."""
        parts = self.ways_us[way]
        return sum(parts.values()) if part == "together" else parts[part]

    def steps(self, way: str, part: str = "together") -> float:
        """The same in steps of the calibration loop."""
        return self.us(way, part) / self.calibration_us


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
        self.config = Config.load(
            env={}, token="t", limit={"mode": "fixed", "max_in_flight": 64}, queue={"max_messages": HELD}
        )
        self.engine = Engine(self.config, Random(1))
        self.admission = Admission(self.engine)
        self.encoder = Encoder(id_source(), draws_ids=True, max_message_bytes=1_048_576)
        self.now = 1_000.0
        self._home = Home(None, None)
        self._upstream = Upstream()

    def cycle(self, way: str, watch: Stopwatch) -> None:
        """A few thousand messages from their producers to their receipts."""
        messages = [
            Message(DESTINATION, BODY, queue=f"queue-{number % QUEUES}" if way == "queued" else None)
            for number in range(HELD)
        ]
        watch.start()
        if way == "run":
            runs = self._hand_in_runs(messages, watch)
            self._deliver(watch)
            check([outcome for run in runs for outcome in outcomes_of(run)])
        else:
            deliveries = self._hand_in_singly(messages, watch)
            self._deliver(watch)
            check([delivery.outcome for delivery in deliveries])
        self.now += 0.01

    def _hand_in_runs(self, messages: Iterable[Message], watch: Stopwatch) -> list[DeliveryRun]:
        source = iter(messages)
        runs = [self._next_run(source) for _ in range(HELD // self.engine.lanes.max_messages)]
        watch.stop("encode")
        for run in runs:
            self.engine.offer_run(run)
        watch.stop("admit")
        return runs

    def _next_run(self, messages: Iterator[Message]) -> DeliveryRun:
        """As `Dispatcher._next_run` does."""
        lanes, room = self.engine.lanes, self.engine.room
        run = DeliveryRun([], [], [], self.now, self.now + self.config.deliver_within, self._home, True)
        most, most_bytes = room.reserve(lanes.max_messages, lanes.max_bytes - lanes.max_messages - 1)
        self.encoder.encode_run(messages, run, most, most_bytes)
        room.release(most - len(run), most_bytes - run.size_bytes)
        return run

    def _hand_in_singly(self, messages: Sequence[Message], watch: Stopwatch) -> list[Delivery]:
        """As `Dispatcher._prepare` and `put_nowait` do, and the pump at the end of the turn."""
        encode, try_take = self.encoder.encode_plain, self.engine.room.try_take
        keep = self.admission.admitted.append
        now, until, home = self.now, self.now + self.config.deliver_within, self._home
        encoded = [encode(message) for message in messages]
        watch.stop("encode")
        for message, plain in zip(messages, encoded, strict=True):
            if plain is None or not try_take(len(plain[0])):
                raise RuntimeError("the core does not take what it should hold")
            data, identity = plain
            queue = message.queue or None
            keep(Delivery(message, data, queue, identity, True, True, now, until, None, home, False))
        deliveries = self.admission.admitted[:]
        self.admission.tell()
        watch.stop("admit")
        return deliveries

    def _deliver(self, watch: Stopwatch) -> None:
        """As the pump does, turn by turn; what a turn starts is answered before the next, until none does."""
        while True:
            step = self.engine.poll(self.now)
            watch.stop("start")
            self._wake(step)
            watch.stop("settle")
            if not step.start:
                return
            replies = [self._reply(batch, watch) for batch in step.start]
            watch.start()
            for batch, reply in zip(step.start, replies, strict=True):
                self.engine.complete(batch, reply, self.now)
            watch.stop("settle")

    def _reply(self, batch: Batch, watch: Stopwatch) -> Reply:
        watch.start()
        body = batch.body()
        watch.stop("body")
        return Reply(200, self._upstream.accept(body))

    @staticmethod
    def _wake(step: Step) -> None:
        for run in cast("list[HandedRun | DeliveryRun]", step.delivered):
            run.wake()
        for delivery in cast("list[Delivery]", step.settled):
            if delivery.waiters is not None:
                delivery.wake()


def outcomes_of(run: DeliveryRun) -> Sequence[object]:
    """What became of its messages, as a whole or one by one."""
    return run.receipts or [entry.outcome for entry in run.entries or ()]


def check(outcomes: Sequence[object]) -> None:
    """Every message has a receipt of its own."""
    receipts = {outcome.message_id for outcome in outcomes if isinstance(outcome, Receipt)}
    if len(receipts) != HELD:
        raise RuntimeError(f"the core delivered {len(receipts)} of {HELD} messages")


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
    """The best of some rounds of each, interleaved, after one that warms up."""
    calibrations: list[float] = []
    ways: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds + 1):
        for way, measured in ways.items():
            gc.collect()
            began = time.process_time()
            calibrate()
            calibrations.append((time.process_time() - began) / CALIBRATION_STEPS * 1e6)
            measured.append(core_round(way, messages))
    best = {way: min(measured[1:], key=lambda one: sum(one.values())) for way, measured in ways.items()}
    return Cost(min(calibrations[len(WAYS) :]), best)


def core_round(way: str, messages: int) -> dict[str, float]:
    """CPU µs a message of each part."""
    core, watch = Core(), Stopwatch()
    cycles = messages // HELD
    for _ in range(cycles):
        core.cycle(way, watch)
    return {part: seconds / (cycles * HELD) * 1e6 for part, seconds in watch.seconds.items()}


def table(cost: Cost, baseline: Cost | None) -> str:
    """Each way and part in µs and in steps of the calibration loop, beside the baseline's."""
    lines = [f"calibration: {cost.calibration_us:.3f} µs a step; a message in the core:"]
    for way in WAYS:
        for part in (*PARTS, "together"):
            line = f"  {way:7} {part:9} {cost.us(way, part):7.3f} µs  {cost.steps(way, part):6.2f} steps"
            if baseline is not None:
                line += f"  (baseline {baseline.steps(way, part):.2f})"
            lines.append(line)
    return "\n".join(lines)


def known_cost(path: Path) -> Cost | None:
    """The baseline; `None` if there is none, or one of other ways and parts than are measured now."""
    try:
        cost = msgspec.json.decode(path.read_bytes(), type=Cost)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    fits = {way: set(parts) for way, parts in cost.ways_us.items()} == {way: set(PARTS) for way in WAYS}
    return cost if fits else None


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
    path: Path = given.baseline
    baseline = known_cost(path)
    cost = measure(given.rounds)
    print(table(cost, baseline))
    if given.update:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(cost), indent=2) + b"\n")
        return 0
    if baseline is None:
        print(f"{path.name} is no baseline of these ways and parts: `--update` writes one", file=sys.stderr)
        return 1
    return judge(cost, baseline)


def judge(cost: Cost, baseline: Cost) -> int:
    """1 if a message has become too dear in one of the ways."""
    is_worse = False
    for way in WAYS:
        change = cost.steps(way) / baseline.steps(way)
        is_worse |= change > WORSE_AT_MOST
        print(f"{way}: {change:.2f} × the baseline{': too slow' if change > WORSE_AT_MOST else ''}")
    print(f"allowed are {WORSE_AT_MOST:.2f}")
    return int(is_worse)


if __name__ == "__main__":
    sys.exit(main())
