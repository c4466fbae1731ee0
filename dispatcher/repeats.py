"""What fails again and again, in few lines: one as it begins, one with counts now and then, one as it ends.

A kind of failure is an episode. Its first line has the words of the failure; after that a failure is only
counted, and every `SECONDS` one line tells how many there were and the words of the latest. Whoever knows
says that it is over (`ended`), else it is when nothing of the kind came for as long. What comes back at once
after its end goes on being counted: a thing that comes and goes costs as few lines as one that stays.

Pure: it is told the time. Nothing here waits; who has a loop asks `tell` at `wake_at`. Used by `news`,
`renewal`, the outbox's relay and the sidecar, each with an object of its own.
"""

from __future__ import annotations

import logging
from typing import Final

from msgspec import Struct

SECONDS: Final = 60.0
"""Between two lines of one episode."""
NEVER: Final = float("inf")


class _Episode(Struct):
    began_at: float
    is_lasting: bool
    """Only `ended` ends it: that nothing is heard of it means nothing."""
    last_at: float = 0.0
    words: str = ""
    level: int = logging.WARNING
    count: int = 0
    untold: int = 0
    """Of these, those that no line has told."""
    tell_at: float = NEVER
    told_at: float = NEVER
    """When a line of it was written last."""
    summaries: int = 0
    is_over: bool = False
    has_ended: bool = False
    """It was over since its last summary, perhaps for a moment."""
    is_end_news: bool = True
    """Its end is told at once: it has gone on for a while, or only begun."""
    is_end_told: bool = False

    @property
    def is_told(self) -> bool:
        """Its first line is written."""
        return self.told_at != NEVER


class Repeats:
    """The episodes of one teller.

    Args:
        logger: Where the lines go.
        teller: Who has them, at the beginning of each line.
        seconds: Between two lines of one episode.
    """

    __slots__ = ("_episodes", "_logger", "_seconds", "_teller")

    def __init__(self, logger: logging.Logger, teller: str, seconds: float = SECONDS) -> None:
        self._logger = logger
        self._teller = teller
        self._seconds = seconds
        self._episodes: dict[str, _Episode] = {}

    def __bool__(self) -> bool:
        """Something may have to be ended."""
        return bool(self._episodes)

    def failed(
        self,
        kind: str,
        words: str,
        now: float,
        *,
        then: str = "",
        count: int = 1,
        after: int = 1,
        level: int = logging.WARNING,
        error: BaseException | None = None,
        is_lasting: bool = False,
    ) -> None:
        """It happened.

        Args:
            kind: What it is one of, in the plural: "failed requests".
            words: What happened, for the line that this may become.
            now: In seconds, of one clock.
            then: What is done about it, for the first line.
            count: How often.
            after: How often it must happen before anything is told.
            level: Of its lines but the last.
            error: Told with its traceback, if this becomes the first line.
            is_lasting: Whether it goes on until `ended` says that it does not.
        """
        episode = self._episodes.get(kind)
        if episode is None:
            episode = self._episodes[kind] = _Episode(now, is_lasting)
        episode.words, episode.level, episode.last_at, episode.is_over = words, level, now, False
        episode.count += count
        episode.untold += count
        if not episode.is_told and episode.count >= after:
            self._write(level, words + then, error)
            episode.told_at, episode.untold = now, 0
        if episode.is_told and episode.tell_at == NEVER:
            episode.tell_at = now + self._seconds
        self._tell_one(kind, episode, now)

    def ended(self, kind: str, words: str, now: float) -> bool:
        """It is over, if it was there; false if it was not.

        What was never told ends unheard, and so does what comes and goes: that is told with its counts.
        """
        episode = self._episodes.get(kind)
        if episode is None:
            return False
        if not episode.is_told:
            del self._episodes[kind]
        elif not episode.is_over:
            episode.is_over = episode.has_ended = True
            episode.is_end_told, episode.is_end_news = episode.is_end_news, False
            if episode.is_end_told:
                self._log_end(kind, words, episode, now - episode.began_at)
        return True

    def tell(self, now: float) -> None:
        """Write what is due."""
        for kind, episode in list(self._episodes.items()):
            self._tell_one(kind, episode, now)

    def close(self, now: float) -> None:
        """Nothing more will come: write what was counted and not told."""
        for kind, episode in self._episodes.items():
            if episode.is_told and episode.untold:
                self._log_counts(kind, episode, now)
        self._episodes.clear()

    @property
    def wake_at(self) -> float:
        """When `tell` has something to write, or to forget; `inf` if that is never."""
        return min((episode.tell_at for episode in self._episodes.values()), default=NEVER)

    def _tell_one(self, kind: str, episode: _Episode, now: float) -> None:
        if now < episode.tell_at:
            return
        if episode.untold:
            self._log_counts(kind, episode, now)
            episode.tell_at = now + self._seconds
            episode.is_end_news, episode.has_ended = not episode.has_ended, False
        elif episode.is_lasting and not episode.is_over:
            episode.tell_at = NEVER  # it goes on, and nobody has tried
        else:
            del self._episodes[kind]
            if episode.summaries and not (episode.is_over and episode.is_end_told):
                words = f"no more {kind} for {self._seconds:.0f} s"
                self._log_end(kind, words, episode, episode.last_at - episode.began_at)

    def _log_counts(self, kind: str, episode: _Episode, now: float) -> None:
        more, seconds = f"{episode.untold:,} more {kind}", f"{now - episode.told_at:.0f} s"
        self._write(episode.level, f"{more} in {seconds}, the latest: {episode.words}")
        episode.told_at, episode.untold = now, 0
        episode.summaries += 1

    def _log_end(self, kind: str, words: str, episode: _Episode, seconds: float) -> None:
        counts = f"; {episode.count:,} {kind} in {seconds:.0f} s" if episode.count > 1 else ""
        episode.untold = 0
        self._write(logging.INFO, words + counts)

    def _write(self, level: int, words: str, error: BaseException | None = None) -> None:
        line = self._teller + words
        self._logger.log(level, line, exc_info=error)
