"""How lines are put on a screen of any size, for `dispatcher top`: cut, side by side, each list its share.

A line is a `rich.text.Text` made of literal parts, so nothing that a listener says is taken for markup.
Knows nothing of what the lines say. Used by `_top_view` and `_top_fleet`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from dispatcher.cli._top_words import Note

TONES: Final = {"ok": "green", "warn": "yellow", "bad": "bold red", "idle": "cyan"}
BADGES: Final = {
    "ok": "bold black on green",
    "warn": "bold black on yellow",
    "bad": "bold white on red",
    "idle": "bold black on cyan",
}
WIDE: Final = 120
"""Columns from which on lists stand side by side."""
NOTE_LINES: Final = 4
"""Of one note, at most."""
ITEM_LINES: Final = 3
"""Of one line of a list, at most."""
INDENT: Final = "    "
ENDS: Final = "q ends"

Part = str | tuple[str, str]


class Frame(NamedTuple):
    """What is drawn on."""

    console: Console
    width: int
    height: int | None
    """None: as many lines as there are, and none is cut."""

    @property
    def is_roomy(self) -> bool:
        """A line may be long."""
        return self.height is None or self.width >= WIDE


class Section(NamedTuple):
    """A headed list."""

    title: str
    lines: list[Text]


def line(*parts: Part) -> Text:
    """One of literal parts, each a text or a text and its style."""
    made = Text(no_wrap=True, end="")
    for part in parts:
        made.append(*((part,) if isinstance(part, str) else part))
    return made


def told(said: Iterable[Note], frame: Frame) -> list[Text]:
    """Sentences, broken into lines."""
    found: list[Text] = []
    for note in said:
        text = Text(f"{note.head} ", style=f"bold {TONES[note.tone]}").append(note.text, "not bold")
        if frame.height is None:
            found.append(text)
            continue
        lines = list(text.wrap(frame.console, frame.width, overflow="fold"))
        if len(lines) > NOTE_LINES:
            lines[NOTE_LINES - 1].append("…" * frame.width)  # cut where the line ends
        found += lines[:NOTE_LINES]
    return found


def bar(share: float, cells: int, style: str) -> list[Part]:
    """A share of one as a bar."""
    full = min(cells, max(0, round(share * cells)))
    return [("█" * full, style), ("░" * (cells - full), "dim")]


def stacked(found: Sequence[Section], frame: Frame, width: int, room: int | None) -> list[Text]:
    """Sections one under the other; where there is little room each gets its share, the first ones before."""
    blocks = [Section(one.title, broken(one.lines, frame, width)) for one in found]
    wants = [1 + len(block.lines) for block in blocks]
    is_roomy = room is None or sum(wants) + len(wants) <= room
    lines: list[Text] = []
    for block, rows in zip(blocks, wants if room is None else shares(wants, room), strict=True):
        if rows < 2:
            continue
        hidden = 1 + len(block.lines) - rows
        more = f"  {hidden:,} more line{'' if hidden == 1 else 's'}" if hidden else ""
        lines += [Text()] if lines and is_roomy else []
        lines += [line((block.title, "bold underline"), (more, "dim")), *block.lines[: rows - 1]]
    return lines


def broken(lines: Iterable[Text], frame: Frame, width: int) -> list[Text]:
    """Long lines as several, the further ones set in."""
    found: list[Text] = []
    for one in lines:
        if frame.height is None or one.cell_len <= width:
            found.append(one)
            continue
        inner = max(1, width - len(INDENT))
        first, *others = one.wrap(frame.console, inner, overflow="fold", no_wrap=False)
        if len(others) >= ITEM_LINES:
            others[ITEM_LINES - 2].append("…" * width)  # cut where the line ends
        found += [first, *(line(INDENT).append_text(other) for other in others[: ITEM_LINES - 1])]
    return found


def shares(wants: Sequence[int], room: int) -> list[int]:
    """Rows for each: two at first, while there are two, then one more for each in turn."""
    given = [0] * len(wants)
    for place in range(len(wants)):
        if room >= 2:
            given[place], room = 2, room - 2
    while room > 0:
        hungry = [place for place, rows in enumerate(given) if 2 <= rows < wants[place]][:room]
        if not hungry:
            return given
        for place in hungry:
            given[place] += 1
        room -= len(hungry)
    return given


def beside(columns: Sequence[list[Text]], widths: Sequence[int]) -> list[Text]:
    """Two columns as one list of lines."""
    left, right = columns
    lines = []
    for place in range(max(len(left), len(right))):
        one = left[place].copy() if place < len(left) else Text()
        one.truncate(widths[0], overflow="ellipsis", pad=True)
        if place < len(right):
            one = line().append_text(one).append("   ").append_text(right[place])
        lines.append(one)
    return lines


def finished(lines: list[Text], frame: Frame) -> list[Text]:
    """As many lines as the frame has, each as wide as it is; the last one says how to end."""
    if frame.height is None:
        return lines
    shown = lines[: frame.height - 1]
    shown += [Text() for _ in range(frame.height - 1 - len(shown))]
    for one in (*shown, last := line((ENDS, "dim"))):
        one.truncate(frame.width, overflow="ellipsis", pad=True)
    return [*shown, last]
