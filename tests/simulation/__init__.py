"""The core in virtual time, against the shared model of the upstream behind the shared fault plans.

A run is decided by its scenario (`scenarios/*.toml`) and its seed, on every machine the same.
`python -m tests.simulation --seeds 2000` runs many on all cores; a failing one prints the command that
replays it.
"""
