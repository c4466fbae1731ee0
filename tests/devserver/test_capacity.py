"""The hidden capacity: how long requests take under load, who is refused, what a plan may say about it."""

from __future__ import annotations

import math
from collections import deque

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from dispatcher.devserver.capacity import Capacity, Load
from dispatcher.devserver.faults import KINDS, FaultKind, FaultPlan
from dispatcher.devserver.kinds import LIMITS, NAMES, REQUEST_RATES
from dispatcher.devserver.responder import JSON_HEADERS, FaultyUpstream
from dispatcher.devserver.upstream import Upstream
from dispatcher.errors import ConfigError
from tests.devserver.support import URL, post

WORKERS = 16

# -- the queue ---------------------------------------------------------------------------------------


class PlayedQueue:
    """A service with a line before its workers, played tick by tick; a request of `n` takes `n` ticks."""

    def __init__(self, capacity: int | None, workers: int | None) -> None:
        self.capacity = math.inf if capacity is None else capacity
        self.workers = math.inf if workers is None else workers
        self.waiting: deque[tuple[int, int]] = deque()
        self.working: dict[int, int] = {}
        self.done_at: dict[int, int] = {}
        self.busy_max = 0

    def tick(self, now: int) -> None:
        """Let those go that are done, and the next ones start."""
        for number in [one for one, ends_at in self.working.items() if ends_at == now]:
            self.done_at[number] = now
            del self.working[number]
        self._start(now)

    def arrive(self, number: int, ticks: int, now: int) -> bool:
        """One more request; whether it is taken."""
        there = len(self.waiting) + len(self.working)
        if there >= self.capacity:
            return False
        self.busy_max = max(self.busy_max, there + 1)
        self.waiting.append((number, ticks))
        self._start(now)
        return True

    def _start(self, now: int) -> None:
        while self.waiting and len(self.working) < self.workers:
            number, ticks = self.waiting.popleft()
            if ticks:
                self.working[number] = now + ticks
            else:
                self.done_at[number] = now


arrivals = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=40)
"""Ticks since the request before, ticks of work."""
limits = st.none() | st.integers(1, 6)


@given(arrivals, limits, limits)
def test_load_is_a_queue_before_so_many_workers(
    requests: list[tuple[int, int]], capacity: int | None, workers: int | None
) -> None:
    """Who is refused, and when everybody else is done, is as in a queue that is played tick by tick."""
    load, played = Load(), PlayedQueue(capacity, workers)
    settings = Capacity(capacity, workers, work_per_item=1.0)
    ends: dict[int, float] = {}
    taken: set[int] = set()
    now = 0
    for number, (gap, ticks) in enumerate(requests):
        for now in range(now + 1, now + gap + 1):  # noqa: B020 - time goes on from where it was
            played.tick(now)
            assert load.at(now) == len(played.waiting) + len(played.working)
        seconds = load.begin(settings, ticks, float(now))
        if seconds is not None:
            ends[number] = now + seconds
        if played.arrive(number, ticks, now):
            taken.add(number)
    while played.working:
        now += 1
        played.tick(now)
    assert set(ends) == taken
    assert ends == played.done_at
    assert load.busy_max == played.busy_max
    assert load.at(now) == 0


@given(st.lists(st.floats(-1e9, 2e9), max_size=30), limits)
def test_no_clock_makes_a_reply_early(instants: list[float], workers: int | None) -> None:
    """However the clock is set, a request takes its work and at most that of all others before it."""
    load = Load()
    for number, now in enumerate(instants):
        seconds = load.begin(Capacity(None, workers, work=2.0), 1, now)
        assert seconds is not None
        assert 2.0 - 1e-6 <= seconds <= 2.0 * (number + 1) + 1e-3
        assert 1 <= load.at(now) <= number + 1


def test_a_clock_that_is_set_back_has_stood_still() -> None:
    """Nobody is there for the hour that the clock went back; the work goes on from where it was."""
    load, one = Load(), Capacity(capacity=2, workers=1, work=1.0)
    assert [load.begin(one, 1, 7200.0) for _ in range(3)] == [1.0, 2.0, None]
    assert load.at(3600.0) == 2
    assert load.begin(one, 1, 3600.0) is None
    assert load.begin(one, 1, 3601.5) == 1.5
    assert (load.at(3601.5), load.at(3602.0), load.at(3603.0)) == (2, 1, 0)


def test_a_limit_that_changes_holds_for_later_requests() -> None:
    """What was taken keeps its turn; with fewer workers the next one waits until few enough are there."""
    load, many, few = Load(), Capacity(workers=4, work=1.0), Capacity(workers=2, work=1.0)
    assert [load.begin(many, 1, now) for now in (0.0, 0.1, 0.2, 0.3)] == [1.0] * 4
    assert load.begin(few, 1, 0.5) == pytest.approx(1.7)  # from 1.2, when two of the four are left
    assert load.begin(many, 1, 0.5) == pytest.approx(1.6)  # from 1.1, when three of the five are left
    assert load.begin(Capacity(capacity=6), 1, 0.5) is None
    assert load.begin(Capacity(), 1, 0.5) == 0.0


# -- the plan ----------------------------------------------------------------------------------------


def test_a_plan_names_the_limits() -> None:
    """Numbers of requests and durations, inline and in a file; nothing is limited unless asked for."""
    plan = FaultPlan.parse("capacity=20 workers=16 work=30ms work_per_item=500us")
    assert plan.base.capacity == Capacity(20, 16, 0.03, 0.0005)
    table = 'capacity = 20\nworkers = 16\nwork = "30ms"\nwork_per_item = 0.0005'
    assert plan == FaultPlan.parse_toml(table)
    assert FaultPlan.parse("capacity=none workers=none") == FaultPlan()
    assert FaultPlan().base.capacity == Capacity(None, None, 0.0, 0.0)


def test_limits_stay_in_phases_unless_given() -> None:
    """A phase takes over what the base says, changes what it names, and lifts a limit with `none`."""
    phases = [
        {"start": 1, "end": 2, "throttle_bare": 1.0},
        {"start": 2, "end": 3, "capacity": 2},
        {"start": 3, "end": 4, "capacity": "none", "workers": "none", "work": "1s"},
    ]
    base = {"capacity": 20, "workers": 16, "work": "30ms", "phase": phases}
    injector = FaultPlan.from_mapping(base).injector(start=100.0)
    assert [injector.capacity(100.0 + at) for at in range(5)] == [
        Capacity(20, 16, 0.03),
        Capacity(20, 16, 0.03),
        Capacity(2, 16, 0.03),
        Capacity(None, None, 1.0),
        Capacity(20, 16, 0.03),
    ]


@pytest.mark.parametrize("name", ["capacity", "workers"])
@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many", "", "nan", "inf", "1e3", "9" * 5000])
def test_a_number_of_requests_is_a_whole_number(name: str, value: str) -> None:
    """Anything else is refused, and the error says what would be right."""
    with pytest.raises(ConfigError, match=rf"faults\.{name}.*whole number of requests, at least 1, or none"):
        FaultPlan.parse(f"{name}={value}")


@pytest.mark.parametrize("value", [True, 2.0, None, [20]])
def test_a_number_of_requests_in_a_file(value: object) -> None:
    """The same for what TOML and JSON can say."""
    with pytest.raises(ConfigError, match=r"faults\.phase\[0\]\.workers.*whole number"):
        FaultPlan.from_mapping({"phase": [{"start": 1, "workers": value}]})


@pytest.mark.parametrize("name", ["work", "work_per_item"])
@pytest.mark.parametrize("value", ["soon", "-1s", "none", "30 ms x"])
def test_work_is_a_duration(name: str, value: str) -> None:
    """The same error as for every other duration."""
    with pytest.raises(ConfigError, match=rf"faults\.{name}.*write a duration"):
        FaultPlan.parse(f"{name}='{value}'")


def test_refusing_for_capacity_is_no_rate() -> None:
    """It follows from load alone: it has a row of its own, and no name to ask for it at random."""
    row = KINDS[FaultKind.OVER_CAPACITY]
    assert (row.accepts, row.status) == (False, 429)
    assert "over_capacity" not in {*REQUEST_RATES, *NAMES}
    assert set(LIMITS) == set(structs.asdict(Capacity())) <= set(NAMES)
    with pytest.raises(ConfigError, match="the names are"):
        FaultPlan.parse("over_capacity=0.5")


# -- the service, in virtual time --------------------------------------------------------------------


def service(plan: str) -> FaultyUpstream:
    return FaultyUpstream(Upstream(), FaultPlan.parse(plan).injector())


def batch(number: int, items: int = 1) -> list[dict[str, str]]:
    return [{"destination": URL, "body": f"{number}-{place}"} for place in range(items)]


def test_above_its_capacity_the_service_refuses() -> None:
    """The 21st at once gets a bare 429 without waiting, and nothing of it is accepted; then there is room."""
    faulty = service("capacity=20 work=200ms latency=5ms")
    replies = [post(faulty, batch(number, 2)) for number in range(25)]
    assert [reply.status for reply in replies] == [200] * 20 + [429] * 5
    assert [reply.latency for reply in replies] == [pytest.approx(0.205)] * 20 + [0.005] * 5
    assert orjson.loads(replies[-1].body) == {"error": "too many requests"}
    assert replies[-1].headers == JSON_HEADERS
    assert (replies[-1].fault, replies[-1].items, replies[-1].accepted) == (FaultKind.OVER_CAPACITY, 2, 0)
    assert len(faulty.upstream.ledger) == 40
    assert post(faulty, batch(25), 0.199).status == 429
    assert [post(faulty, batch(number), 0.2).status for number in range(26, 47)] == [200] * 20 + [429]
    assert faulty.faults == {"over_capacity": 7}
    assert (faulty.load.at(0.2), faulty.load.busy_max) == (20, 20)


def test_workers_are_silent() -> None:
    """With 16 workers 40 at once are all accepted, and answered in three rounds."""
    faulty = service(f"workers={WORKERS} work=30ms latency=10ms")
    replies = [post(faulty, batch(number)) for number in range(40)]
    assert [reply.status for reply in replies] == [200] * 40
    for number, reply in enumerate(replies):
        assert reply.latency == pytest.approx(0.01 + 0.03 * (number // WORKERS + 1))
    assert len(faulty.upstream.ledger) == 40
    assert faulty.faults == {}
    assert (faulty.load.at(0.0), faulty.load.at(0.03), faulty.load.at(0.06), faulty.load.at(0.09)) == (
        40,
        24,
        8,
        0,
    )


def test_a_larger_batch_takes_longer() -> None:
    """Each message adds its share; single messages are work as well, and what cannot be read costs `work`."""
    faulty = service("workers=1 work=10ms work_per_item=1ms")
    assert post(faulty, batch(0, 100)).latency == pytest.approx(0.110)
    single = faulty.respond("/v2/publish/https://a.example", b"x")
    queued = faulty.respond("/v2/enqueue/q/https://a.example", b"x")
    unreadable = faulty.respond("/v2/batch", b"[")
    assert [single.status, queued.status, unreadable.status] == [200, 200, 400]
    assert single.latency == pytest.approx(0.121)
    assert queued.latency == pytest.approx(0.132)
    assert unreadable.latency == pytest.approx(0.142)


def test_both_limits_together() -> None:
    """A service with two workers and room for two more: the fifth is refused."""
    faulty = service("capacity=4 workers=2 work=1s")
    replies = [post(faulty, batch(number)) for number in range(5)]
    assert [(reply.status, reply.latency) for reply in replies] == [
        (200, 1.0),
        (200, 1.0),
        (200, 2.0),
        (200, 2.0),
        (429, 0.0),
    ]


def test_the_capacity_changes_in_phases() -> None:
    """It falls, is lifted, and comes back, without forgetting who is there."""
    phases = [{"start": 1, "end": 2, "capacity": 2}, {"start": 2, "end": 3, "capacity": "none"}]
    plan = FaultPlan.from_mapping({"capacity": 5, "work": "300ms", "phase": phases})
    faulty = FaultyUpstream(Upstream(), plan.injector())
    taken = [
        sum(post(faulty, batch(number), now).status == 200 for number in range(10))
        for now in (0.0, 0.8, 1.0, 1.2, 1.9, 2.0, 3.0)
    ]
    # At 1.0 the five of 0.8 are still there, at 1.2 two are taken, at 2.0 anybody is.
    assert taken == [5, 5, 0, 2, 2, 10, 5]


@pytest.mark.parametrize("kind", ["throttle_bare", "error_after", "truncate", "disconnect_before"])
def test_a_request_that_goes_wrong_is_work_all_the_same(kind: str) -> None:
    """It waits for its turn, and the next one for it; the fault is what the client sees."""
    faulty = service(f"{kind}=1 workers=1 work=1s latency=5ms")
    replies = [post(faulty, batch(number)) for number in range(3)]
    assert {reply.status for reply in replies} == {KINDS[FaultKind(kind)].status}
    assert [reply.latency for reply in replies] == [pytest.approx(at) for at in (1.005, 2.005, 3.005)]
    assert faulty.faults == {kind: 3}


def test_a_refused_request_does_not_hang() -> None:
    """Above the capacity nothing else is looked at: neither a fault nor poison nor a malformed body."""
    faulty = service("hang_before=1 capacity=1 work=1s")
    assert math.isinf(post(faulty, batch(0)).latency)
    over = faulty.respond("/v2/batch", b"[")
    assert (over.status, over.latency, over.items) == (429, 0.0, 0)
    assert faulty.faults == {"hang_before": 1, "over_capacity": 1}
    poisoned = service("poison_400=POISON capacity=1 work=1s")
    assert [poisoned.respond("/v2/publish/nobody", b"POISON").status for _ in range(2)] == [400, 429]
    assert len(faulty.upstream.ledger) == len(poisoned.upstream.ledger) == 0


def test_an_invalid_request_is_answered_after_its_work() -> None:
    """A fault that hangs does not swallow the refusal, nor the time that it takes."""
    faulty = service("hang_after=1 workers=1 work=1s")
    replies = [post(faulty, [{"destination": ""}]) for _ in range(2)]
    assert [(reply.status, reply.latency) for reply in replies] == [(400, 1.0), (400, 2.0)]


def test_refusals_do_not_shift_the_faults() -> None:
    """Each request draws its fault, also one that is refused: a seed means the same under any load."""
    plan = "error_before=0.5 latency=exponential(5ms)"
    free, full = service(plan), service(f"{plan} capacity=2 work=1s")
    instants = [number * 0.3 for number in range(200)]
    drawn = [post(free, batch(number), now) for number, now in enumerate(instants)]
    seen = [post(full, batch(number), now) for number, now in enumerate(instants)]
    assert 20 < full.faults["over_capacity"] < 180
    for one, other in zip(drawn, seen, strict=True):
        over = other.fault is FaultKind.OVER_CAPACITY
        assert over or other.fault is one.fault
        assert other.latency == pytest.approx(one.latency + (0.0 if over else 1.0))


def test_clearing_forgets_the_load() -> None:
    """After it the service is idle, and has never been anything else."""
    faulty = service("capacity=1 work=1h")
    assert [post(faulty, batch(number)).status for number in range(2)] == [200, 429]
    faulty.clear()
    assert (faulty.load.at(0.0), faulty.load.busy_max, dict(faulty.faults)) == (0, 0, {})
    assert post(faulty, batch(2)).status == 200
