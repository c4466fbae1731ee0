"""Each mutant of the core is noticed by the simulation or the state machine within few seeds."""

from __future__ import annotations

import re

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.machine import EngineMachine
from tests.simulation.mutants import MUTANTS, Mutant, apply
from tests.simulation.runs import failure
from tests.simulation.test_state_machine import bounded

SEEDS = 60
EXAMPLES = 1_200
WITNESSES = [(mutant, by) for mutant in MUTANTS for by in mutant.by]


@pytest.mark.parametrize(
    ("mutant", "by"), WITNESSES, ids=lambda one: re.sub(r"\W+", "_", getattr(one, "name", str(one)))
)
def test_a_mutant_is_noticed(mutant: Mutant, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of a few words in the core, and a scenario (or the state machine) that fails by it."""
    apply(mutant, monkeypatch)
    if by == "machine":
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever breaks first is the notice
            run_state_machine_as_test(
                EngineMachine,
                settings=settings(bounded(EXAMPLES), phases=[Phase.generate], report_multiple_bugs=False),
            )
        return
    assert any(failure(by, seed) for seed in range(SEEDS)), f"no seed of {by} noticed: {mutant.name}"


def test_there_are_enough_of_them() -> None:
    """At least ten, each with another name."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 10
