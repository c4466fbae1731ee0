"""The report of a run or a search as lines of text, and its live line. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dispatcher.bench.result import COARSE, LATE_SHARE, STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from dispatcher.bench.find import Finding, Goal, Trial
    from dispatcher.bench.recorder import Gauges, Recorder
    from dispatcher.bench.result import Report, Result

MEGABYTE: Final = 1_000_000
NAME_WIDTH: Final = 14
COARSE_SECONDS: Final = 0.001
HEADINGS: Final = ("p50", "p90", "p99", "p99.9", "max")


def live_line(recorder: Recorder, gauges: Gauges, waiting: int) -> str:
    """How it goes, for the last second."""
    asked, achieved, latest = recorder.last_second()
    errors = f" · {recorder.failed:,} failed" if recorder.failed else ""
    state = "" if gauges.state == "open" else f" · {gauges.state}"
    behind = f" · {waiting:,} waiting" if waiting else ""
    return (
        f"{achieved:,.0f} of {asked:,.0f} msg/s · {gauges.in_flight} in flight · {gauges.held:,} held{behind}"
        f" · p50 {time_text(latest.quantile(0.5))}, p99 {time_text(latest.quantile(0.99))}{errors}{state}"
    )


def lines(report: Report) -> Iterator[str]:
    """The whole report."""
    yield f"{report.load}"
    yield f"to {report.target}"
    if report.result is not None:
        yield ""
        yield from _run_lines(report.result)
    if report.finding is not None:
        yield ""
        yield finding_line(report.finding)
    if report.result is None and report.stopped:
        yield f"{'ended early' if report.finding is not None else 'nothing was measured'}: {report.stopped}"


def facts(result: Result) -> Iterator[tuple[str, str]]:
    """Names and values of a run, without its latencies."""
    yield "asked", f"{result.asked:,} messages, {result.asked_rate:,.0f} msg/s"
    yield "delivered", f"{result.delivered:,} in {result.seconds:,.2f} s, {result.achieved_rate:,.0f} msg/s"
    if result.failed:
        yield "failed", f"{result.failed:,}: {counted(result.errors)}"
    if result.unfinished:
        yield "unfinished", f"{result.unfinished:,} (counted below with their age)"
    sizes = f", {result.fill:,.1f} messages each"
    yield "requests", f"{result.requests:,}, {result.request_rate:,.0f} a second{sizes}"
    for name, words in (
        ("answers", result.by_status),
        ("batches left", result.batches),
        ("retried", result.retried),
        ("gate closed", result.pauses),
        ("limit cut", result.cuts),
    ):
        if words:
            yield name, counted(words)
    yield "processor", _effort(result)
    if result.peak_memory_bytes is not None:
        yield "peak memory", f"{result.peak_memory_bytes / MEGABYTE:,.0f} MB"


def _effort(result: Result) -> str:
    own = f"{result.cpu_us:,.1f} µs a message, {result.cpu_share:.0%} of one (generator included)"
    if result.upstream_cpu_share is None:
        return own
    return f"{own}; local upstream {result.upstream_cpu_share:.0%}"


def _run_lines(result: Result) -> Iterator[str]:
    for name, value in facts(result):
        yield f"  {name:<{NAME_WIDTH}}{value}"
    yield ""
    yield f"  {'latency':<{NAME_WIDTH}}" + "".join(f"{heading:>10}" for heading in HEADINGS)
    for name, stage in result.stages.items():
        values = (stage.p50, stage.p90, stage.p99, stage.p999, stage.max)
        yield f"  {name:<{NAME_WIDTH}}" + "".join(f"{stage_text(name, value):>10}" for value in values)
    yield ""
    yield from (f"  {name}: {STAGES[name]}" for name in result.stages)
    if result.stopped:
        yield f"  ended early: {result.stopped}"
    yield from (f"  warning: {warning}" for warning in result.warnings)


def trial_line(goal: Goal, trial: Trial) -> str:
    """One rate of a search, and why it did not hold."""
    values = ", ".join(time_text(window.value) for window in trial.windows)
    held = sum(window.holds(goal) for window in trial.windows)
    verdict = "holds" if trial.holds else "does not hold"
    failed = sum(window.failed for window in trial.windows)
    why = f"; {failed:,} failed or unfinished" if failed else ""
    late = max(window.late_share for window in trial.windows)
    own = f"; this process late for {late:.1%}" if late > LATE_SHARE else ""
    return (
        f"{trial.rate:>10,.0f} msg/s  {goal.name} {values}  {verdict} "
        f"({held} of {len(trial.windows)} windows{why}{own})"
    )


def finding_line(finding: Finding) -> str:
    """How a search ended."""
    goal = finding.goal
    if finding.rate is None:
        lowest = min((trial.rate for trial in finding.trials), default=0.0)
        return f"no rate that was tried keeps {goal.words}, down to {lowest:,.0f} msg/s"
    above = f"; {finding.fails_at:,.0f} does not" if finding.fails_at is not None else ""
    doubt = "" if finding.is_complete else " (broken off: not confirmed)"
    failed = [trial for trial in finding.trials if trial.rate == finding.fails_at and not trial.holds]
    own = any(window.late_share > LATE_SHARE for trial in failed for window in trial.windows)
    why = ", where this process itself was too slow" if own else ""
    return f"{finding.rate:,.0f} msg/s keeps {goal.words}{above}{why}{doubt}"


def counted(words: Mapping[str, int]) -> str:
    """The most frequent first."""
    return ", ".join(f"{number:,} {name}" for name, number in sorted(words.items(), key=lambda one: -one[1]))


def stage_text(stage: str, seconds: float) -> str:
    """A stage's latency, no finer than its clock."""
    return "< 1 ms" if stage in COARSE and seconds < COARSE_SECONDS else time_text(seconds)


def time_text(seconds: float) -> str:
    """Three digits and a unit."""
    if seconds < 0.000_999_5:
        return f"{seconds * 1e6:.0f} µs"
    for below, scale, unit in ((0.999_5, 1e3, "ms"), (float("inf"), 1.0, "s")):
        if seconds < below:
            value = seconds * scale
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    raise AssertionError("unreachable")
