"""What finding culprits costs: requests beyond the refused one, by batch size and number of culprits.

    python -m benchmarks.isolation

Prints the Markdown table. Runs the isolation itself (`dispatcher.core.isolation`) against a service that
refuses whatever carries a culprit: one culprit at every position, several at places drawn from a seed.
Plain bisection, simulated beforehand: one in 100 costs 10.9 more requests on average and at most 14, ten 61.
"""

from __future__ import annotations

from random import Random
from statistics import mean
from typing import TYPE_CHECKING, Final

from dispatcher.core.batch import ISOLATED, SETTLED, Entry
from dispatcher.core.isolation import Isolation
from dispatcher.message import Message

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

SIZES: Final = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)
CULPRITS: Final = (1, 2, 3, 5, 10)
DRAWS: Final = 400


def entries(size: int) -> list[Entry]:
    """The live entries of one refused batch."""
    made = []
    for number in range(size):
        message = Message("https://example.com/", str(number))
        made.append(Entry(message, b"{}", None, f"id{number:06}", True, True, 0.0, 120.0, number=number))
        made[-1].state = ISOLATED
    return made


def search(
    batch: list[Entry], culprits: Collection[int], *, text: str = "", infers: bool = True
) -> tuple[int, list[int]]:
    """Isolate; returns how many requests that took and who was rejected."""
    isolation = Isolation(batch, is_whole=True, infers=infers, text=text)
    requests = 0
    rejected: list[int] = []
    while (probe := isolation.next_probe()) is not None:
        requests += 1
        if all(entry.number not in culprits for entry in probe):
            for entry in probe:
                entry.state = SETTLED
            isolation.on_accepted()
        elif (culprit := isolation.on_refused(infers=infers)) is not None:
            culprit.state = SETTLED
            rejected.append(culprit.number)
    assert all(entry.state == SETTLED for entry in batch), "a message is left over"
    return requests, rejected


def cost(size: int, culprits: Iterable[int]) -> int:
    """Requests beyond the refused one; asserts that exactly the culprits are rejected, in order."""
    places = set(culprits)
    if size == 1:
        return 0  # refused alone: rejected at once
    requests, rejected = search(entries(size), places)
    assert rejected == sorted(places), "not exactly the culprits were rejected"
    return requests


def costs(size: int, number: int) -> list[int]:
    """One culprit at each position; several at `DRAWS` drawn places."""
    if number == 1:
        return [cost(size, [position]) for position in range(size)]
    rng = Random(size * 1000 + number)
    return [cost(size, rng.sample(range(size), number)) for _ in range(DRAWS)]


def table() -> str:
    """Mean and maximum for every size and number of culprits."""
    head = "| messages | " + " | ".join(f"{number} culprit{'s' * (number > 1)}" for number in CULPRITS) + " |"
    rows = [head, "|---:" * (len(CULPRITS) + 1) + "|"]
    for size in SIZES:
        cells = [_cell(size, number) if number <= size else "" for number in CULPRITS]
        rows.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(size: int, number: int) -> str:
    found = costs(size, number)
    return f"{mean(found):.1f} (at most {max(found)})"


if __name__ == "__main__":
    print("More requests than the refused one: mean (maximum).\n")
    print(table())
