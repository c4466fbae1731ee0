"""The public types, pinned by a type checker on a user's file; and what it must reject."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.imports import ROOT

if TYPE_CHECKING:
    from pathlib import Path

RIGHT = """
from collections.abc import AsyncIterator
from typing import assert_type

from prometheus_client import CollectorRegistry

from dispatcher import (
    Attempt, BatchSettings, Certainty, Config, Delivery, DeliveryError, Dispatcher, DispatcherError,
    DrainReport, Endpoint, FlowControl, HTTPTransport, Message, MessageRejected, Options, QueueFull, Receipt,
    Statistics, Transport,
)
from dispatcher.metrics import metrics_table, register
from dispatcher.testing import AcceptedMessage, ManualClock, ScriptedTransport, local_upstream


def on_failure(errors: list[DeliveryError]) -> None:
    for error in errors:
        assert_type(error.message, Message)
        assert_type(error.certainty, Certainty)
        assert_type(error.attempts, tuple[Attempt, ...])


async def produce() -> AsyncIterator[Message]:
    yield Message("my-url-group", json={"a": [1, None]}, queue="billing", deliver_within=5)


async def use() -> None:
    flow = FlowControl("key", parallelism=1)
    later = Options(delay="5m", retries=3, forward={"X-Tenant": "42"}, flow_control=flow)
    message = Message("https://example.com", body=b"bytes", options=later, headers={"Upstash-Label": "x"})
    config = Config(token="t", url="http://localhost:8080", batch=BatchSettings(linger=0))
    transport: Transport = HTTPTransport(config)
    scripted: Transport = ScriptedTransport(503, 200)
    async with Dispatcher(config, name="x", transport=transport, on_failure=on_failure) as dispatcher:
        assert_type(dispatcher, Dispatcher)
        assert_type(await dispatcher.send(message), Receipt)
        delivery = await dispatcher.put(message)
        assert_type(delivery, Delivery)
        assert_type(dispatcher.put_nowait(message), Delivery)
        receipt = await delivery
        assert_type(receipt, Receipt)
        assert_type(receipt.message_id, str | None)
        assert_type(receipt.message_ids, tuple[str, ...])
        assert_type(receipt.endpoints, tuple[Endpoint, ...])
        assert_type(delivery.done(), bool)
        assert_type(delivery.withdraw(), bool)
        assert_type(delivery.result(), Receipt)
        assert_type(delivery.exception(), DeliveryError | None)
        assert_type(delivery.message, Message)
        assert_type(await dispatcher.send_many([message]), list[Receipt | DispatcherError])
        assert_type(await dispatcher.send_many(produce()), list[Receipt | DispatcherError])
        assert_type(dispatcher.stream(produce(), window=5), AsyncIterator[Receipt | DispatcherError])
        async for outcome in dispatcher.stream([message]):
            assert_type(outcome, Receipt | DispatcherError)
        assert_type(await dispatcher.flush(), None)
        assert_type(dispatcher.statistics(), Statistics)
        register(dispatcher)
        register(dispatcher, registry=CollectorRegistry())
    assert_type(await dispatcher.aclose(), DrainReport)
    assert_type(Config.load(env={}, retry_max_attempts=3), Config)
    assert_type(Message.from_sdk({"url": "https://example.com"}), Message)
    assert_type(metrics_table(), str)
    assert_type(ManualClock().advance(1), float)
    async with local_upstream() as upstream:
        assert_type(upstream.accepted(), list[AcceptedMessage])
    try:
        dispatcher.put_nowait(message)
    except QueueFull as error:
        assert_type(error.held, int)
    except MessageRejected as error:
        assert_type(error.status, int)
"""

WRONG = """
from dispatcher import BatchSettings, Config, Dispatcher, Message, Options, Receipt
from dispatcher.testing import ManualClock


async def use(dispatcher: Dispatcher, message: Message) -> None:
    await dispatcher.send("https://example.com/hook")  # E: arg-type
    await dispatcher.put_nowait(message).message_id  # E: attr-defined
    dispatcher.put(message).done()  # E: attr-defined
    receipt: Receipt = await dispatcher.put(message)  # E: assignment
    (await dispatcher.send(message)).message_id.upper()  # E: union-attr
    [one.message_id for one in await dispatcher.send_many([message])]  # E: union-attr
    await dispatcher.send_many(message)  # E: arg-type
    async for one in dispatcher.stream([message], 5): ...  # E: call-arg misc
    Dispatcher(Config("t"), "name")  # E: misc call-arg
    Dispatcher(Config("t"), transport=ManualClock())  # E: arg-type
    Dispatcher(Config("t"), on_failure=print if dispatcher else 5)  # E: arg-type
    Message("https://example.com", 5)  # E: arg-type
    Message("https://example.com", None, {})  # E: misc call-arg
    Message("https://example.com", forward={})  # E: call-arg
    Options(retries="3")  # E: arg-type
    Config("t", batch={"linger": 0})  # E: arg-type
    Config("t").batch.linger = 1  # E: misc
    BatchSettings(linger="1")  # E: arg-type
"""


def check(folder: Path, **sources: str) -> tuple[int, str]:
    """Exit code and output of `mypy --strict` on a user's files."""
    paths = []
    for name, source in sources.items():
        path = folder / f"{name}.py"
        path.write_text(source, encoding="utf-8")
        paths.append(str(path))
    command = [sys.executable, "-m", "mypy", "--strict", "--show-error-codes", "--no-error-summary", *paths]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_the_public_types_are_pinned(tmp_path: Path) -> None:
    """Every call of the public API has the type it promises, in a file of a user under `--strict`."""
    code, output = check(tmp_path, right=RIGHT)
    assert (code, output) == (0, "")


def test_wrong_uses_are_rejected(tmp_path: Path) -> None:
    """Each of these lines is an error, of the kind it names, and there are no others."""
    code, output = check(tmp_path, wrong=WRONG)
    found: dict[int, set[str]] = {}
    for line, kind in re.findall(r"^[^\n]*wrong\.py:(\d+): error: .*\[([\w-]+)\]$", output, re.MULTILINE):
        found.setdefault(int(line), set()).add(kind)
    wanted = {}
    for number, text in enumerate(WRONG.splitlines(), 1):
        if "# E: " in text:
            wanted[number] = set(text.partition("# E: ")[2].split())
    assert code == 1
    assert found.keys() == wanted.keys(), output
    assert all(found[number] <= wanted[number] for number in wanted), output
