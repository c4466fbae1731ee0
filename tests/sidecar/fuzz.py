"""Fuzzing of the intake: any number of requests, sane and insane, and what every answer to them must be.

Against a real `dispatcher serve` before a real local upstream, which fails now and then in every fourth
round. Every answer has to be HTTP to the byte, in time, never a 500, an error in JSON where it is one; every
message that was answered as accepted has to be in the upstream's ledger with just that destination, queue and
body; and no message is there more often than it was sent. In the end the sidecar has to be as good as new.

    python -m tests.sidecar.fuzz --requests 100000 --seed 1

Exit code 1, and the smallest script that does it, if something was found.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.sidecar.fuzz_answers import Hangs, Malformed, Replies, Reply
from tests.sidecar.fuzz_grammar import scripts
from tests.sidecar.fuzz_ledger import Ledger
from tests.sidecar.fuzz_requests import CALLER, OWNER, Request, Script, Talk
from tests.sidecar.fuzz_stage import FAULTS, MODULE, staged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.sidecar.fuzz_stage import Stage

EXAMPLES = 250
EXAMPLES_MIN = 20
"""Scripts of one round."""
FAULTY_EVERY = 4
"""One round of so many has an upstream that fails."""
PIECES_MAX = 40
GOOD = frozenset({200, 202})
REFUSALS = frozenset({400, 401, 403, 404, 405, 409, 412, 413, 414, 417, 422, 431, 501, 505})
TROUBLE = frozenset({429, 502, 503, 504})
"""Only where the upstream fails."""
SECRETS = (CALLER, OWNER)


class Found(Exception):  # noqa: N818 - it found something
    """Something is wrong with an answer."""


class Enough(BaseException):
    """There is no more time for making what was found smaller; Hypothesis lets it pass."""


@dataclass
class Run:
    """One run of the fuzzer against one stage.

    Args:
        hang: Seconds that a script may take; more is a hang.
        shrink: Seconds for making what was found smaller.
    """

    stage: Stage
    hang: float = 20.0
    shrink: float = 60.0
    requests: int = 0
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: int = 0
    """Of the upstream."""
    found: tuple[Script, str] | None = None
    _found_at: float = 0.0

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.stage.accepted)

    @property
    def is_clean(self) -> bool:
        """Nothing was found so far."""
        return self.found is None

    def round(self, number: int, examples: int) -> None:
        """So many scripts, of this seed; what is found stands in `found`."""

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink),
        )
        @given(scripts)
        def every_answer_is_right(script: Script) -> None:
            self._judge(script)

        try:
            every_answer_is_right()
        except (Exception, Enough):  # also a group, where what was found does not come again each time
            if self.found is None:
                raise

    def _judge(self, script: Script) -> None:
        """Raises `Found`, or `Enough` once the time for making it smaller is over."""
        if self.found and time.monotonic() > self._found_at + self.shrink:
            raise Enough
        try:
            self.play(script)
            return
        except (Malformed, Hangs, Found, AssertionError) as error:
            self._found_at = self._found_at or time.monotonic()
            self.found = (script, f"{type(error).__name__}: {error}")
        raise Found(self.found[1])

    # --------------------------------------------------------------------------------------------- one script

    def play(self, script: Script) -> None:
        """Say it, and judge what comes back."""
        ends_at = time.monotonic() + self.hang
        self.ledger.expect(request for talk in script if not talk.is_mad for request in talk.requests)
        self.requests += sum(len(talk.requests) for talk in script)
        socks = [self._connected() for _ in script]
        try:
            _send(script, socks)
            for talk, sock in zip(script, socks, strict=True):
                if not talk.leaves:
                    self._listen(talk, Replies(sock, ends_at))
        finally:
            for sock in socks:
                sock.close()
        wrong = self.ledger.settle()
        if wrong:
            raise Found("; ".join(wrong))

    def _connected(self) -> socket.socket:
        sock = socket.create_connection(self.stage.address, timeout=self.hang)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _listen(self, talk: Talk, replies: Replies) -> None:
        if talk.is_mad:
            self._listen_to_anything(talk, replies)
            return
        for number, request in enumerate(talk.requests, 1):
            reply = replies.next(request.method)
            is_spoilt = any(later.is_unreadable for later in talk.requests[max(1, number - 1) :])
            if is_spoilt and (reply is None or request.route == "bulk"):
                return  # what cannot be read takes with it what was piped before it: see `is_unreadable`
            if reply is None:
                raise Found(f"no answer to request {number} of {len(talk.requests)}: {request.wire[:200]!r}")
            self.statuses[request.route, reply.status] += 1
            self._check(request, reply)
            if reply.closes and request.method == b"HEAD":
                return  # a refusal by the parser, which does not know yet that nobody reads its body
            if reply.closes:
                break
        if talk.half_closes and (reply := replies.next()) is not None:
            raise Found(f"an answer that nobody asked for: {reply}")
        if replies.surplus():
            raise Found(f"bytes that nobody asked for: {replies.surplus()[:200]!r}")

    def _listen_to_anything(self, talk: Talk, replies: Replies) -> None:
        answers = 0
        while (reply := replies.next()) is not None:
            answers += 1
            self.statuses["mad", reply.status] += 1
            self._check(None, reply)
            self.ledger.exists(reply)
        if not answers and talk.wire.strip(b"\r\n"):
            raise Found("no answer at all")

    def _check(self, request: Request | None, reply: Reply) -> None:
        allowed = GOOD | REFUSALS | (TROUBLE if self.stage.is_faulty else frozenset())
        if reply.status not in allowed:
            raise Found(f"the status of {reply}")
        if any(secret in reply.body or secret in repr(reply.headers).encode() for secret in SECRETS):
            raise Found(f"a secret in {reply}")
        has_body = request is None or request.method != b"HEAD"
        if reply.status >= 400 and has_body:
            error = reply.json
            if not isinstance(error, dict) or not error.get("error"):
                raise Found(f"no error in the service's form: {reply}")
        if reply.status in GOOD and request is not None:
            self.ledger.answered(request, reply)

    # ------------------------------------------------------------------------------------------------ report

    def table(self) -> str:
        """Requests by route and status."""
        routes: dict[str, list[str]] = {}
        for (route, status), count in sorted(self.statuses.items()):
            routes.setdefault(route, []).append(f"{status}: {count:,}")
        return "\n".join(f"  {route:8} {', '.join(counts)}" for route, counts in routes.items())


def _send(script: Script, socks: Sequence[socket.socket]) -> None:
    """All connections' bytes, piece by piece in turn."""
    waiting = [(talk, sock, _pieces(talk)) for talk, sock in zip(script, socks, strict=True)]
    while waiting:
        for entry in list(waiting):
            talk, sock, pieces = entry
            try:
                if pieces:
                    sock.sendall(pieces.pop(0))
                    continue
                if talk.half_closes:
                    sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was refused and closed: its answer says why
            waiting.remove(entry)
            if talk.leaves:
                sock.close()


def _pieces(talk: Talk) -> list[bytes]:
    data, pieces = talk.wire, list[bytes]()
    while data and talk.cuts and len(pieces) < PIECES_MAX:
        size = talk.cuts[len(pieces) % len(talk.cuts)]
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data] if data else pieces


def fuzz(
    requests: int, number: int, *, command: Sequence[str] = MODULE, hang: float = 20.0, shrink: float = 60.0
) -> tuple[Run, list[str]]:
    """Fuzz a sidecar with about so many requests; what is wrong, in words."""
    with staged(command) as stage:
        run = Run(stage, hang, shrink)
        run.round(number, EXAMPLES_MIN)
        if run.is_clean:
            stage.settle()
        descriptors, rounds = stage.descriptors(), 0
        while run.is_clean and run.requests < requests:
            rounds += 1
            stage.set_faults("" if rounds % FAULTY_EVERY else FAULTS, number + rounds)
            run.round(number + rounds, max(EXAMPLES_MIN, min(EXAMPLES, requests // 60)))
        if run.found is not None:
            return run, [run.found[1]]
        run.faults = stage.faults()
        wrong = stage.settle()
        if stage.descriptors() > descriptors + 8:
            wrong.append(f"{stage.descriptors()} descriptors, {descriptors} at the beginning")
        return run, wrong + stage.stop()


def main(words: Sequence[str] | None = None) -> int:
    """Fuzz, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.sidecar.fuzz", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--requests", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=None, help="the same requests for the same one")
    asked = parser.parse_args(words)
    number = time.time_ns() % 1_000_000 * 1_000 if asked.seed is None else asked.seed
    began = time.monotonic()
    run, wrong = fuzz(asked.requests, number)
    seconds = time.monotonic() - began
    print(
        f"seed {number}: {run.requests:,} requests in {seconds:.0f} s ({run.requests / seconds:,.0f}/s), "
        f"{run.ledger.checked:,} messages found in the ledger as they were answered, "
        f"{run.ledger.rows:,} accepted, {run.faults:,} faults of the upstream"
    )
    print(run.table())
    for one in wrong:
        print(f"FOUND: {one}")
    if run.found is not None:
        for talk in run.found[0]:
            flags = " ".join(name for name in ("half_closes", "leaves", "is_mad") if getattr(talk, name))
            print(f"  connection, pieces {talk.cuts or 'at once'} {flags}: {talk.wire!r}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
