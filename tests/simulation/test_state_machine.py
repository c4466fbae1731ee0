"""Hypothesis drives the engine through any sequence of inputs; a share of it in every run of the tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.machine import EngineMachine

EXAMPLES = 600
STEPS = 50


def test_any_sequence_of_inputs() -> None:
    """Every invariant of the engine and every outcome, whatever comes in whatever order."""
    run_state_machine_as_test(EngineMachine, settings=bounded(EXAMPLES))


def bounded(examples: int) -> settings:
    """So many sequences, the same in each run."""
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
