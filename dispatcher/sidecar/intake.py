"""The intake: requests to publish, enqueue and batch, answered as the service answers them.

Each message is settled on its own by the one dispatcher of the process. Nothing here decides what leaves or
what an answer means; what a request says is read by `dialect`, what its caller is told is written by
`answers`. The good path, a small publish that has room, is a chain of plain functions around one `await`.
Called by `app`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from dispatcher.errors import DispatcherError
from dispatcher.sidecar import answers
from dispatcher.sidecar.alone import Alone
from dispatcher.sidecar.bodies import Bodies, broken, too_large
from dispatcher.sidecar.bulk import Bulk, hurry
from dispatcher.sidecar.dialect import Dialect, Refused
from dispatcher.sidecar.durable import DurableSubmission
from dispatcher.sidecar.durable_parts import DurableDialect
from dispatcher.sidecar.reply import Reply
from dispatcher.sidecar.submission import Submission

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from dispatcher.dispatcher import Dispatcher
    from dispatcher.message import Message, Receipt
    from dispatcher.outbox import Outbox
    from dispatcher.sidecar.answers import Answer, Outcome
    from dispatcher.sidecar.counters import IntakeCounters
    from dispatcher.sidecar.server import Request
    from dispatcher.sidecar.settings import ServeSettings

BULK: Final = "bulk"
BATCH: Final = "batch"
ITEMS_A_TURN: Final = 500
"""Messages of one JSON batch that are handed in before the loop has its turn."""
NOT_ALLOWED: Final = 405


class Intake:
    """Answers `/v2/publish/…`, `/v2/enqueue/…/…` and `/v2/batch`.

    Args:
        dispatcher: Where every message goes; opened and closed by the daemon.
        serve: Bounds and patience.
        counters: Told of every request and of what was sent alone.
        outbox: Where every message goes instead, if there is one: durable before it is answered.
        respond_after: Seconds that a caller then waits for the service's own id.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        serve: ServeSettings,
        counters: IntakeCounters,
        outbox: Outbox | None = None,
        respond_after: float = 10.0,
    ) -> None:
        self._serve = serve
        self._counters = counters
        queue, batch = dispatcher.config.queue, dispatcher.config.batch
        most, room = min(batch.max_message_bytes, batch.max_bytes), dispatcher.engine.room
        submission: Any
        if outbox is None:
            self._dialect = Dialect(most, dispatcher.config.deliver_within)
            submission = Submission(dispatcher, serve.patience, counters)
            self._answer_of, self._answer_of_batch = answers.of_receipt, answers.of_batch
        else:
            self._dialect = DurableDialect(most, respond_after)
            submission = DurableSubmission(outbox, respond_after, serve.patience, room, counters)
            self._answer_of, self._answer_of_batch = answers.of_kept, answers.of_kept_batch
        self._submission = submission
        budget = max(queue.max_bytes, serve.max_batch_bytes)
        self._bodies = Bodies(submission.room, budget, serve.patience, counters)
        # Looked up once, not for each message:
        self._has_room, self._send = submission.has_room, submission.send
        self._max_bytes = serve.max_body_bytes
        self._count = counters.request

    def handle(self, request: Request, route: str) -> Awaitable[web.StreamResponse]:
        """Answer one request.

        Args:
            route: `publish`, `enqueue`, `batch` or `bulk`.
        """
        if route in (BATCH, BULK):
            return self._answer_many(request, route)
        return self._answer_one(request, route)

    async def _answer_one(self, request: Request, route: str) -> web.StreamResponse:
        try:
            if request.awaits_continue or not (content := request.content).is_eof():
                receipt = await self._send_late(request)
            else:
                body = content.read_nowait()
                message = self._message(request, body)
                if self._has_room(len(body)):
                    receipt = await self._send(message)
                else:
                    receipt = await self._submission.send_patiently(message)
            response = Reply(*self._answer_of(receipt))
        except (DispatcherError, Refused) as error:
            response = self._refused(error)
        except web.RequestPayloadError as error:
            response = self._refused(broken(error))
        self._count(route, response.status)
        return response

    async def _send_late(self, request: Request) -> Receipt:
        """The same for a body that did not come with its head."""
        async with self._bodies.read(request, self._max_bytes, self._wait_of(request) or None) as body:
            message = self._message(request, body)
            sent = self._send if self._has_room(len(body)) else self._submission.send_patiently
            receipt: Receipt = await sent(message)
            return receipt

    def _wait_of(self, request: Request) -> float | None:
        """The caller's own patience, in seconds."""
        return self._dialect.wait_of(request.headers.getall("Prefer", ()))

    def _message(self, request: Request, body: bytes) -> Message:
        if request.method != "POST":
            raise not_allowed()
        if len(body) > self._max_bytes:
            raise too_large(self._max_bytes)
        message = self._dialect.read_publish(request.raw_path, request.raw_headers, body)
        if type(message) is Alone:
            self._submission.count(message)
        return message

    def _refused(self, error: DispatcherError | Refused) -> Reply:
        if isinstance(error, DispatcherError):
            self._counters.failed(error)
        answer = answers.of(error, time.time())
        allowed = (("Allow", "POST"),) if answer.status == NOT_ALLOWED else ()
        return Reply(answer.status, answer.body, (*answer.headers, *allowed))

    # --------------------------------------------------------------------------------------------- batches

    async def _answer_many(self, request: Request, route: str) -> web.StreamResponse:
        response: web.StreamResponse
        try:
            if request.method != "POST":
                raise not_allowed()
            if route == BULK:
                bulk = Bulk(self._dialect, self._submission, self._bodies, self._counters, self._serve)
                response = await bulk.run(request)
            else:
                response = Reply(*await self._batch(request))
        except (DispatcherError, Refused) as error:
            response = self._refused(error)
        self._count(route, response.status)
        return response

    async def _batch(self, request: Request) -> Answer:
        wait = self._wait_of(request)
        async with self._bodies.read(request, self._serve.max_batch_bytes, wait or None) as body:
            messages = self._dialect.read_batch(body, self._serve.max_items)
            hurry(messages, wait)
            outcomes = await self._settled(messages, wait)
        for outcome in outcomes:
            if isinstance(outcome, DispatcherError):
                self._counters.failed(outcome)
        return self._answer_of_batch(outcomes, time.time())

    async def _settled(self, messages: list[Message | Refused], wait: float | None) -> list[Outcome]:
        """What became of each; `wait` is the caller's own patience."""
        submission, places, patience = self._submission, list[Any](), self._serve.patience
        until = asyncio.get_running_loop().time() + min(wait or patience, patience)
        try:
            for number, message in enumerate(messages, 1):
                place = submission.place_now(message)
                if place is None:
                    assert not isinstance(message, Refused)
                    place = await submission.place(message, until)
                places.append(place)
                if number % ITEMS_A_TURN == 0:
                    await asyncio.sleep(0)
            outcomes: list[Outcome] = await submission.outcomes(places, wait)
        except asyncio.CancelledError:
            submission.take_back(places)
            raise
        return outcomes


def not_allowed() -> Refused:
    """Another method than POST."""
    return Refused(NOT_ALLOWED, "method not allowed, use POST")
