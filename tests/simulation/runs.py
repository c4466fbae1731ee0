"""One run from a scenario's name and a seed, and what a failing one reports."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from tests.simulation.scenario import load
from tests.simulation.verdict import judge
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.scenario import Scenario


def run(scenario: Scenario, seed: int, *, check_every: int = 1) -> World:
    """Play one seed and judge it; raises `AssertionError` where something does not hold."""
    world = World(scenario, seed, check_every=check_every).run()
    judge(world)
    return world


def failure(name: str, seed: int, *, full: bool = False) -> str | None:
    """Play one seed; a report with the command that replays it, if it fails."""
    world = None
    try:
        world = World(load(name), seed)
        judge(world.run())
    except Exception as error:  # whatever breaks in a run is that run's report
        return report(name, seed, error, world, full=full)
    return None


def report(name: str, seed: int, error: Exception, world: World | None, *, full: bool) -> str:
    """What failed, the last steps, and the command that replays them."""
    trace = [] if world is None else list(world.trace)[-60 if full else -15 :]
    where = traceback.format_exception(error) if full else [repr(error)]
    command = f"python -m tests.simulation --scenario {name} --start {seed} --seeds 1"
    return "\n".join([f"FAILED {name} seed {seed}: replay with", f"    {command}", *trace, "".join(where)])
