"""Fault plans: what they parse, what they refuse, and that a seed gives exactly the same faults."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from dispatcher.devserver.faults import KINDS, NAMES, Fault, FaultKind, FaultPlan
from dispatcher.devserver.kinds import ITEM_RATES, MARKERS, REQUEST_RATES
from dispatcher.errors import ConfigError

EVERY = " ".join(f"{name}=0.05" for name in REQUEST_RATES) + " error_entry=0.1 error_endpoint=0.1"


def draw(plan: FaultPlan, seed: int, count: int, items: int = 10) -> list[Fault]:
    injector = plan.injector(seed)
    return [injector.next(float(n), items) for n in range(count)]


def test_the_same_seed_gives_the_same_faults() -> None:
    """Two injectors of one plan and seed agree on every field of every fault; another seed does not."""
    plan = FaultPlan.parse(EVERY + " latency=lognormal(30ms,0.5)")
    assert draw(plan, 7, 2000) == draw(plan, 7, 2000)
    assert draw(plan, 7, 2000) != draw(plan, 8, 2000)


def test_a_seed_is_exact_across_machines() -> None:
    """The first faults of a seed are these, on every machine and Python: a printed seed replays a failure."""
    plan = FaultPlan.parse("error_before=0.3 disconnect_after=0.3 error_entry=0.2 latency=uniform(10ms,20ms)")
    faults = draw(plan, 1, 6, items=8)
    assert [fault.kind.value for fault in faults] == EXACT_KINDS
    assert [round(fault.latency, 9) for fault in faults] == EXACT_LATENCIES
    assert [fault.error_entries for fault in faults] == EXACT_ENTRIES


def test_kinds_do_not_depend_on_the_number_of_items() -> None:
    """A dispatcher that cuts its batches otherwise meets the same sequence of kinds and latencies."""
    plan = FaultPlan.parse(EVERY + " latency=exponential(5ms)")
    small, large = draw(plan, 3, 500, items=1), draw(plan, 3, 500, items=100)
    assert [(f.kind, f.latency) for f in small] == [(f.kind, f.latency) for f in large]


def test_every_kind_occurs_at_its_rate() -> None:
    """In 20,000 requests each kind is drawn about as often as its rate says, and the rest is faultless."""
    kinds = Counter(fault.kind for fault in draw(FaultPlan.parse(EVERY), 11, 20_000, items=0))
    for name in REQUEST_RATES:
        assert 0.04 < kinds[FaultKind(name)] / 20_000 < 0.06, name
    assert 0.10 < kinds[FaultKind.NONE] / 20_000 < 0.20


def test_error_entries_come_at_their_rate_per_item() -> None:
    """Positions are inside the batch, ascending, and as frequent as the rate; rates 0 and 1 are exact."""
    faults = draw(FaultPlan.parse("error_entry=0.02"), 5, 2000, items=100)
    assert all(list(f.error_entries) == sorted(set(f.error_entries)) for f in faults)
    assert all(0 <= place < 100 for f in faults for place in f.error_entries)
    assert 0.018 < sum(len(f.error_entries) for f in faults) / 200_000 < 0.022
    assert draw(FaultPlan.parse("error_entry=1"), 5, 1, items=3)[0].error_entries == (0, 1, 2)
    assert draw(FaultPlan.parse("error_entry=0"), 5, 1, items=3)[0].error_entries == ()
    assert draw(FaultPlan.parse("error_entry=1e-300"), 5, 1, items=3)[0].error_entries == ()


@pytest.mark.parametrize(
    ("text", "low", "median", "high"),
    [
        ("30ms", 0.03, 0.03, 0.03),
        ("constant(0.03s)", 0.03, 0.03, 0.03),
        ("uniform(10ms,50ms)", 0.01, 0.03, 0.05),
        ("exponential(30ms)", 0.0, 0.0208, 1.0),
        ("lognormal(30ms,0.5)", 0.001, 0.03, 1.0),
    ],
)
def test_latency_distributions(text: str, low: float, median: float, high: float) -> None:
    """Each distribution stays in its range and has its median."""
    latencies = sorted(fault.latency for fault in draw(FaultPlan.parse(f"latency={text}"), 2, 5000))
    assert low <= latencies[0] + 1e-12
    assert latencies[-1] <= high + 1e-12
    assert latencies[2500] == pytest.approx(median, rel=0.06)


def test_headers_date_the_reset() -> None:
    """Throttles say until when in unix seconds rounded up, 503 says for how long; a bare 429 says nothing."""
    durations = "burst_reset=2500ms daily_reset=1h retry_after=1500ms"
    for name, headers in {
        "throttle_burst": {
            "Burst-RateLimit-Limit": "100",
            "Burst-RateLimit-Remaining": "0",
            "Burst-RateLimit-Reset": "1003",
        },
        "throttle_daily": {"RateLimit-Limit": "1000", "RateLimit-Remaining": "0", "RateLimit-Reset": "4600"},
        "throttle_bare": {},
        "unavailable": {"Retry-After": "2"},
    }.items():
        fault = FaultPlan.parse(f"{name}=1 {durations}").injector().next(1000.0, 1)
        assert dict(fault.headers) == headers
        assert fault.status == KINDS[FaultKind(name)].status
        assert not fault.accepts
    assert FaultPlan.parse("unavailable=1 retry_after=0").injector().next(0.0, 1).headers == ()


def test_phases_in_time() -> None:
    """A phase replaces the rates while it lasts, counted from the start; latency and markers stay."""
    plan = FaultPlan.parse_toml(
        """
        latency = "20ms"
        error_after = 1.0
        poison_400 = "POISON"
        [[phase]]
        start = 10
        end = 20.5
        unavailable = 1
        [[phase]]
        start = "1m"
        latency = "1s"
        """
    )
    injector = plan.injector(0, start=1000.0)
    assert [injector.next(now, 1).kind.value for now in (1009.9, 1010.0, 1020.4, 1020.5)] == [
        "error_after",
        "unavailable",
        "unavailable",
        "error_after",
    ]
    assert injector.next(1015.0, 1).latency == 0.02
    assert injector.next(1060.0, 1) == Fault(FaultKind.NONE, 1.0)
    assert injector.markers(1015.0) == {"poison_400": "POISON"}


def test_hanging_is_an_infinite_latency() -> None:
    """A request that is never answered has no finite latency for a simulation to wait for."""
    assert math.isinf(FaultPlan.parse("hang_after=1 latency=5ms").injector().next(0.0, 1).latency)


def test_the_inline_form_and_the_table_mean_the_same() -> None:
    """One vocabulary: a plan on the command line equals the one in a file."""
    inline = FaultPlan.parse("latency=uniform(1ms,2ms) truncate=0.25 poison_500='TO XIC' drip_over=3s")
    assert inline == FaultPlan.parse_toml(
        'latency = "uniform(1ms, 2ms)"\ntruncate = 0.25\npoison_500 = "TO XIC"\ndrip_over = 3'
    )
    assert FaultPlan.parse("") == FaultPlan()


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("latencies=3ms", "throttle_burst"),
        ("error_before", "NAME=VALUE"),
        ("error_before=2", "between 0 and 1"),
        ("error_before=-0.1", "between 0 and 1"),
        ("error_before=often", "between 0 and 1"),
        ("error_before=nan", "between 0 and 1"),
        ("error_before=0.6 error_after=0.5", "sum to"),
        ("latency=normal(3ms,1)", "lognormal(MEDIAN,SIGMA)"),
        ("latency=uniform(3ms)", "lognormal(MEDIAN,SIGMA)"),
        ("latency=lognormal(3ms,x)", "lognormal(MEDIAN,SIGMA)"),
        ("latency=uniform(3ms,1ms)", "LOW"),
        ("drip_over=soon", "duration"),
        ("poison_400=ein\u00e4", "printable ASCII"),
        ("poison_400=", "printable ASCII"),
        ("poison_400=\"a'b", "in quotes"),
    ],
)
def test_mistakes_say_what_is_allowed(text: str, needle: str) -> None:
    """A plan that cannot be meant is refused, and the error says what would be right."""
    with pytest.raises(ConfigError, match=needle.replace("(", r"\(").replace(")", r"\)")):
        FaultPlan.parse(text)


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("truncate = [", "cannot be read"),
        ("[phase]\nstart = 1", r"\[\[phase\]\]"),
        ("[[phase]]\nstart = 5\nend = 5", "later than start"),
        ("[[phase]]\nbegin = 5", "start, end"),
        ("[[phase]]\nstart = 'x'", "duration"),
    ],
)
def test_mistakes_in_files_say_where(text: str, needle: str) -> None:
    """The same for a file with phases."""
    with pytest.raises(ConfigError, match=needle):
        FaultPlan.parse_toml(text)


def test_names_are_complete() -> None:
    """Every kind can be asked for by its own name, but the faultless one and what only load brings about."""
    assert {kind.value for kind in FaultKind} - {"none", "over_capacity"} <= set(NAMES)
    assert set(KINDS) == set(FaultKind)
    assert set(ITEM_RATES) | set(MARKERS) <= set(NAMES)


EXACT_KINDS = ["none", "none", "error_before", "disconnect_after", "error_before", "disconnect_after"]
EXACT_LATENCIES = [0.019808729, 0.010805798, 0.017367357, 0.015679828, 0.011273843, 0.016520984]
EXACT_ENTRIES = [(), (0,), (0, 3), (5, 7), (), (6,)]
