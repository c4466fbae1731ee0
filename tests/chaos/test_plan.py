"""Plans of the chaos proxy: what may be written, and that dice are exact for a seed."""

from __future__ import annotations

from collections import Counter

import pytest

from dispatcher.devserver.chaosplan import CHAOS, PAIRS, ChaosKind, ChaosPlan
from dispatcher.errors import ConfigError

MIX = "refuse=0.1 latency=exponential(1ms) " + " ".join(
    f"{kind}=0.05" for kind in CHAOS if kind is not ChaosKind.REFUSE
)


def throws(seed: int, connections: int = 200) -> list[object]:
    plan = ChaosPlan.parse(MIX)
    drawn: list[object] = []
    for number in range(1, connections + 1):
        dice = plan.dice(seed, number)
        drawn.append(dice.is_refused)
        drawn += [dice.throw() for _ in range(5)]
    return drawn


def test_dice_are_exact_for_a_seed() -> None:
    """The same seed gives every connection the same faults, another seed others."""
    assert throws(7) == throws(7)
    assert throws(7) != throws(8)


def test_a_connection_does_not_depend_on_its_neighbours() -> None:
    """What the ninth connection meets is the same however many exchanges the others had."""
    plan = ChaosPlan.parse(MIX)
    alone = plan.dice(1, 9)
    for number in range(1, 9):
        plan.dice(1, number).throw()
    assert [alone.throw() for _ in range(9)] == [
        each for dice in [plan.dice(1, 9)] for each in [dice.throw() for _ in range(9)]
    ]


def test_every_kind_is_drawn_about_as_often_as_asked() -> None:
    """Of 20,000 exchanges each kind has its share of 5 %, the ones on reuse not on a first exchange."""
    plan = ChaosPlan.parse(MIX)
    kinds: Counter[ChaosKind] = Counter()
    firsts: Counter[ChaosKind] = Counter()
    for number in range(2_000):
        dice = plan.dice(3, number)
        exchanges = [dice.throw() for _ in range(10)]
        firsts[exchanges[0].kind] += 1
        kinds.update(each.kind for each in exchanges)
    for kind, row in CHAOS.items():
        if kind is ChaosKind.REFUSE:
            continue
        wanted = 1_000 * (0.9 if row.needs_reuse else 1)
        assert 0.8 * wanted < kinds[kind] < 1.2 * wanted, kind
        assert (firsts[kind] == 0) == row.needs_reuse


@pytest.mark.parametrize("name", PAIRS)
def test_a_short_name_is_both_directions(name: str) -> None:
    """Half of the rate each; it adds to what a direction has of its own."""
    plan = ChaosPlan.parse(f"{name}=0.02 {name}_reply=0.1")
    assert plan.rates == {
        ChaosKind(f"{name}_request"): pytest.approx(0.01),
        ChaosKind(f"{name}_reply"): pytest.approx(0.11),
    }


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("typo=0.1", "chaos"),
        ("reset", "chaos"),
        ("reset=1.5", "chaos.reset"),
        ("reset=often", "chaos.reset"),
        ("reset=0.6 truncate=0.6", "chaos"),
        ("stall_for=long", "chaos.stall_for"),
        ("latency=normal(3ms)", "chaos.latency"),
        ('"reset=0.1', "chaos"),
    ],
)
def test_a_wrong_plan_says_where(text: str, field: str) -> None:
    """The error names the setting and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        ChaosPlan.parse(text)
    assert caught.value.field == field
    assert caught.value.allowed


def test_an_empty_plan_is_faultless() -> None:
    """No fault, no delay."""
    dice = ChaosPlan.parse("").dice(1, 1)
    exchange = dice.throw()
    assert not dice.is_refused
    assert (exchange.kind, set(exchange.delays.values())) == (ChaosKind.NONE, {0.0})
