"""The limits by themselves: the fixed one learns nothing; the adaptive one grows on evidence, cuts once a
flight, remembers the peak and goes back to it by halves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.config import LimitSettings
from dispatcher.core.limit import SHARE_KEPT, SPACED_SECONDS, AdaptiveLimit, FixedLimit, Limit, Signal, made
from dispatcher.core.trim import LatencyTrim

SIGNALS: tuple[Signal, ...] = ("ok", "overload", "timeout", "neutral")
MANY = 10_000
"""A maximum that nothing here reaches, so that whole numbers are fine enough to measure growth in."""

LEFT = int(512 * SHARE_KEPT["overload"])
LEFT_TWICE = int(512 * SHARE_KEPT["overload"] ** 2)


class Trips:
    """A limit whose flights start together and are answered together, one after the other."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.now = 100.0

    def fly(self, signal: Signal = "ok", times: int = 1, *, was_reached: bool = True) -> int:
        """So many round trips with as many attempts as the limit allows; what it allows then."""
        for _ in range(times):
            started_at, self.now = self.now + 1.0, self.now + 2.0
            for _ in range(self.limit.value):
                self.tell(signal, started_at, was_reached=was_reached)
        return self.limit.value

    def tell(self, signal: Signal, started_at: float | None = None, *, was_reached: bool = True) -> bool:
        """One attempt ended now; it began just before, or when the test says."""
        began_at = self.now - 0.5 if started_at is None else started_at
        return self.limit.observe(
            signal, started_at=began_at, now=self.now, messages=100, was_reached=was_reached
        )

    def refuse(self, signal: Signal = "overload") -> int:
        """One attempt of a new flight is refused; what is left."""
        self.now += 2.0
        assert self.tell(signal), "it was not cut"
        return self.limit.value


def grown(trips: int = 7, maximum: int = MANY) -> Trips:
    """An adaptive limit that has doubled so often without a refusal."""
    flights = Trips(AdaptiveLimit(maximum))
    flights.fly(times=trips)
    return flights


# ------------------------------------------------------------------------------------------- the fixed one


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_fixed_limit_learns_nothing(signal: Signal) -> None:
    """Its value stays whatever is observed, and nothing counts as a cut."""
    limit = FixedLimit(7)
    assert not limit.observe(signal, started_at=0.0, now=1.0, messages=1, was_reached=True)
    limit.on_stalled()
    limit.on_reopened(was_refused=True)
    limit.on_reopened(was_refused=False)
    assert limit.value == 7


def test_the_configuration_chooses() -> None:
    """Fixed, adaptive, adaptive with the latency trim; the adaptive one by default."""
    fixed = made(LimitSettings(mode="fixed", max_in_flight=9, latency_trim=True))
    assert isinstance(fixed, FixedLimit)
    assert fixed.value == 9
    assert isinstance(made(LimitSettings()), AdaptiveLimit)
    assert Trips(made(LimitSettings(max_in_flight=9))).fly(times=9) == 9
    slow = {"messages": 1, "was_reached": True, "started_at": 0.0, "now": 100.0}
    for is_trimmed in (False, True):
        limit = made(LimitSettings(latency_trim=is_trimmed))
        for _ in range(8):
            limit.observe("ok", started_at=99.9, now=100.0, messages=1, was_reached=True)
        before = limit.value
        for _ in range(32):
            limit.observe("ok", **slow)  # type: ignore[arg-type]
        assert (limit.value < before) is is_trimmed


# ---------------------------------------------------------------------------------------------- growth


def test_it_doubles_until_the_first_refusal() -> None:
    """From four, each round trip."""
    flights = Trips(AdaptiveLimit(MANY))
    assert [flights.limit.value, *(flights.fly() for _ in range(6))] == [4, 8, 16, 32, 64, 128, 256]


def test_it_never_grows_without_need() -> None:
    """Where no ready batch waited, successes say nothing, however many, before a refusal or after it."""
    flights = Trips(AdaptiveLimit(MANY))
    assert flights.fly(times=50, was_reached=False) == 4
    flights.fly(times=3)
    left = flights.refuse()
    assert flights.fly(times=50, was_reached=False) == left


def test_neutral_answers_say_nothing() -> None:
    """Neither growth nor a cut, nor a success since the last cut."""
    flights = grown()
    before = flights.limit.value
    assert flights.fly("neutral", 20) == before
    assert not flights.tell("neutral")


@pytest.mark.parametrize("maximum", [1, 2, 3, 4, 5, 64])
def test_it_stays_within_its_bounds(maximum: int) -> None:
    """From one to the maximum, whatever is refused or accepted; from one it comes back."""
    flights = Trips(AdaptiveLimit(maximum))
    assert flights.limit.value == min(4, maximum)
    assert flights.fly(times=12) == maximum
    for _ in range(30):
        flights.refuse("timeout")
    assert flights.limit.value == 1
    assert flights.fly(times=200) == maximum


def test_at_the_bottom_one_success_is_enough() -> None:
    """However often it was cut there, the first success makes it two."""
    flights = grown()
    for _ in range(60):
        flights.refuse("timeout")
    assert flights.limit.value == 1
    flights.tell("ok")
    assert flights.limit.value == 2


# ----------------------------------------------------------------------------------------------- cuts


@pytest.mark.parametrize("signal", ["overload", "timeout"])
def test_what_a_cut_leaves(signal: Signal) -> None:
    """Less after a timeout than after a refusal; the same whether more was wanted or not."""
    assert 0.5 <= SHARE_KEPT["timeout"] < SHARE_KEPT["overload"] < 0.9
    for was_reached in (False, True):
        flights = grown()
        assert flights.limit.value == 512
        assert flights.tell(signal, was_reached=was_reached)
        assert flights.limit.value == int(512 * SHARE_KEPT[signal])


def test_one_cut_a_flight() -> None:
    """What began at or before the cut does not cut again; what began after it does."""
    flights = grown()
    cut_at = flights.now
    assert flights.tell("overload", cut_at - 1.0)
    flights.now += 5.0
    for started_at in (cut_at - 3.0, cut_at - 0.001, cut_at):
        assert not flights.tell("overload", started_at)
        assert not flights.tell("timeout", started_at)
    assert flights.limit.value == LEFT
    assert flights.tell("overload", cut_at + 0.001)
    assert flights.limit.value == LEFT_TWICE


def test_a_whole_flight_refused_is_one_cut() -> None:
    """However large it was."""
    assert grown().fly("overload") == LEFT


# ----------------------------------------------------------------------------------------- the last peak


def test_half_of_the_way_back() -> None:
    """After a cut each round trip goes about half of what is left of the way to the peak, and not past it."""
    flights = grown()
    ways = [511.5 - value for value in (flights.refuse(), *(flights.fly() for _ in range(4)))]
    shares = [after / before for before, after in pairwise(ways)]
    assert all(0.5 <= share <= 0.68 for share in shares), shares


def test_slowly_next_to_the_peak_and_faster_beyond_it() -> None:
    """Growth falls to a fraction of a batch a round trip, and rises again, up to a quarter of the limit."""
    flights = grown()
    flights.refuse()
    values = [flights.limit.value, *(flights.fly() for _ in range(30))]
    steps = [after - before for before, after in pairwise(values)]
    nearest = max(number for number, value in enumerate(values) if value <= 512)
    assert steps[0] > (512 - LEFT) / 3
    assert sum(steps[nearest - 5 : nearest]) <= 3, "next to the peak it creeps"
    beyond = steps[nearest:]
    assert beyond[5] > beyond[0]
    assert max(after / before for before, after in pairwise(values)) <= 1.3
    last = [after / before for before, after in pairwise(values[-5:])]
    assert all(1.2 <= factor <= 1.3 for factor in last), "far beyond it the step is a quarter, no more"


def test_a_small_limit_grows_by_one_beyond_its_peak() -> None:
    """A quarter of a few is less than one batch: one a round trip is the most then."""
    flights = Trips(AdaptiveLimit(MANY))
    flights.fly(was_reached=False)
    flights.refuse()
    values = [flights.fly() for _ in range(80)]
    assert values[0] <= 4, "it crawls past the peak"
    small = [value for value in values if value <= 5]
    assert all(after - before <= 1 for before, after in pairwise(small))
    assert values[-1] > 50


def test_refused_below_the_peak_it_is_lower() -> None:
    """Others want their share: half-way between what was refused and what is left of it."""
    flights = grown()
    flights.refuse()
    refused = flights.fly()
    assert LEFT * 1.05 < refused < 480
    left = flights.refuse()
    peak = (refused + left) / 2.0
    way, after = peak - left, peak - flights.fly()
    assert 0.45 <= after / way <= 0.7
    crept = [flights.fly() for _ in range(12)]
    assert abs(crept[7] - peak) < 5, "here it creeps, where the first peak is far away"


def test_refusals_in_a_row_leave_the_peak_alone() -> None:
    """Without a success between, the second tells nothing new of where the peak is."""
    flights = grown()
    flights.refuse()
    assert flights.refuse() == LEFT_TWICE
    ways = [511.5 - LEFT_TWICE, 511.5 - flights.fly()]
    assert 0.5 <= ways[1] / ways[0] <= 0.68, "half of the way back to the first one"


# ------------------------------------------------------------------------------- reopened, and stalled


def test_after_an_outage_it_begins_anew() -> None:
    """Four, and doubling as if nothing had ever been refused."""
    flights = grown()
    flights.refuse()
    flights.limit.on_reopened(was_refused=False)
    assert [flights.limit.value, *(flights.fly() for _ in range(8))] == [
        4,
        8,
        16,
        32,
        64,
        128,
        256,
        512,
        1024,
    ]


def test_after_a_refusal_it_begins_anew_to_half() -> None:
    """Four, doubling at first, but only to half of what drew the refusal; from there on slowly."""
    flights = grown()
    flights.limit.on_reopened(was_refused=True)
    values = [flights.limit.value, *(flights.fly() for _ in range(20))]
    assert values[:4] == [4, 8, 16, 32]
    assert 245 <= values[12] <= values[13] <= 255


@pytest.mark.parametrize("was_refused", [False, True])
def test_to_reopen_never_raises_it(was_refused: bool) -> None:
    """A limit below four stays there."""
    flights = Trips(AdaptiveLimit(MANY))
    flights.refuse("timeout")
    flights.limit.on_reopened(was_refused=was_refused)
    assert flights.limit.value == 2


def test_stalled_means_one_more() -> None:
    """And one more each time, up to the maximum."""
    limit = AdaptiveLimit(6)
    values = []
    for _ in range(4):
        limit.on_stalled()
        values.append(limit.value)
    assert values == [5, 6, 6, 6]


# -------------------------------------------------------------------------------------------- spreading


def test_starts_are_spread_after_a_refusal() -> None:
    """Over a round trip, for some seconds from the last refusal on; after a timeout they are not."""
    flights = grown()
    assert flights.limit.spacing(flights.now) == 0.0
    flights.refuse("timeout")
    assert flights.limit.spacing(flights.now) == 0.0
    flights.fly()
    value, refused_at = flights.refuse(), flights.now
    for seconds in (0.0, SPACED_SECONDS - 0.001):
        assert flights.limit.spacing(refused_at + seconds) == pytest.approx(1.0 / value, rel=0.02)
    assert flights.limit.spacing(refused_at + SPACED_SECONDS) == 0.0
    limit = FixedLimit(4)
    limit.observe("overload", started_at=0.0, now=1.0, messages=1, was_reached=True)
    assert limit.spacing(1.0) == 0.0


# ------------------------------------------------------------------------------------------- whatever comes

OBSERVED = st.tuples(
    st.sampled_from(SIGNALS), st.floats(0.0, 20.0), st.floats(0.0, 3.0), st.integers(1, 300), st.booleans()
)
EVENTS = st.one_of(OBSERVED, OBSERVED, OBSERVED, st.sampled_from(["refused", "away", "stalled"]))


@given(st.integers(1, 200), st.booleans(), st.lists(EVENTS, max_size=200))
def test_whatever_comes_it_is_a_number_of_batches(
    maximum: int, is_trimmed: bool, events: list[tuple[Signal, float, float, int, bool] | str]
) -> None:
    """A whole number from one to the maximum; only a success raises it, or everything being stalled."""
    limit, now = AdaptiveLimit(maximum, LatencyTrim() if is_trimmed else None), 100.0
    for event in events:
        before, may_raise = limit.value, False
        if isinstance(event, tuple):
            signal, took, later, messages, was_reached = event
            now += later
            may_raise = signal == "ok" and (was_reached or is_trimmed)
            is_cut = limit.observe(
                signal, started_at=now - took, now=now, messages=messages, was_reached=was_reached
            )
            assert not is_cut or signal in ("overload", "timeout")
            assert is_cut or is_trimmed or limit.value >= before
        elif event == "stalled":
            limit.on_stalled()
            may_raise = True
        else:
            limit.on_reopened(was_refused=event == "refused")
        assert type(limit.value) is int
        assert 1 <= limit.value <= maximum
        assert may_raise or limit.value <= before


# ------------------------------------------------------------------------------------- another maximum


def test_another_maximum_of_a_fixed_limit() -> None:
    """It is the limit itself."""
    limit = FixedLimit(8)
    limit.set_maximum(3)
    assert limit.value == 3


def test_another_maximum_of_an_adaptive_limit() -> None:
    """A lower one holds at once, a higher one is reached by success only."""
    flights = grown(times := 5)
    assert flights.limit.value > 10, times
    flights.limit.set_maximum(10)
    assert flights.limit.value == 10
    flights.fly(times=3)
    assert flights.limit.value == 10
    flights.limit.set_maximum(15)
    assert flights.limit.value == 10
    flights.fly(times=3)
    assert flights.limit.value == 15
