"""The conformance suite, and its state machine, for the store in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.outbox.conformance import StoreConformance
from tests.outbox.model import StoreMachine
from tests.outbox.redis_support import RedisPlace, Server, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.outbox.conformance import Place


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("redis")) as one:
        yield one


class TestRedisStore(StoreConformance):
    """In Redis, alone."""

    @pytest.fixture(params=[32, 1], ids=["32 shards", "1 shard"])
    def place(self, server: Server, request: pytest.FixtureRequest) -> Place:
        return RedisPlace(server, shards=request.param)


@pytest.mark.parametrize("shards", [1, 3])
def test_arbitrary_runs(server: Server, shards: int) -> None:
    """Whatever is done in whatever order, crashes among it, the store agrees with the model."""

    class Machine(StoreMachine):
        def new_place(self) -> Place:
            return RedisPlace(server, shards=shards)

    steps = settings(max_examples=60, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(Machine, settings=steps)
