"""The declared families: what is exported of them, their names, their fixed words, their table."""

from __future__ import annotations

import ast
import gc
import inspect
import re
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from dispatcher import Dispatcher, Message, __version__
from dispatcher.core import batch, engine, expiry, retry, setback, settlement, tally
from dispatcher.dispatcher import REFUSAL_WORDS
from dispatcher.families import FAMILIES, INFO_NAME
from dispatcher.metrics import metrics_table, register
from dispatcher.testing import local_upstream
from tests.metrics_support import URL, Scrape, config, exposition, idle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SET_FROM_THE_START = ("dispatcher_gate", "dispatcher_retry_budget_tokens")

# --------------------------------------------------------------------------------- exposition and names


def test_every_fixed_label_value_is_exported_from_the_start() -> None:
    """A rate over a counter that appears with its first event would miss that event."""
    registry, dispatcher = CollectorRegistry(), idle()
    register(dispatcher, registry)
    scrape = Scrape(registry)
    for family in FAMILIES:
        suffix = "_count" if family.kind == "histogram" else ""
        values = family.values or ("",)
        series = [
            scrape(f"{family.name}{suffix}", **({family.label: one} if family.label else {}))
            for one in values
        ]
        is_set = "_limit" in family.name or family.name in SET_FROM_THE_START
        assert is_set or not any(series)
        assert len(scrape.values[f"{family.name}{suffix}"]) == len(values)


def test_the_version_is_exported_once() -> None:
    """One info sample for the registry, also without a living dispatcher."""
    registry = CollectorRegistry()
    register(idle(), registry)
    gc.collect()
    assert Scrape(registry).values[INFO_NAME] == {frozenset({("version", __version__)}): 1.0}


@pytest.mark.anyio
async def test_open_metrics_parses_as_well() -> None:
    """The other exposition, by its own stricter parser, names the same families and kinds."""
    registry = CollectorRegistry()
    async with local_upstream() as upstream, Dispatcher(config(upstream)) as dispatcher:
        register(dispatcher, registry)
        await dispatcher.send(Message(URL))
    text = openmetrics_text(registry).decode()  # type: ignore[no-untyped-call]
    kinds = {one.name: one.type for one in parse_openmetrics(text)}  # type: ignore[no-untyped-call]
    expected = {one.name.removesuffix("_total"): one.kind for one in FAMILIES}
    assert kinds == expected | {INFO_NAME.removesuffix("_info"): "info"}


def test_families_are_what_is_exported() -> None:
    """Names, kinds and help of the text are the declared ones, in the declared order."""
    registry = CollectorRegistry()
    register(idle(), registry)
    text = exposition(registry)
    exported = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert exported == [*((one.name, one.kind) for one in FAMILIES), (INFO_NAME, "gauge")]
    for family in FAMILIES:
        assert f"# HELP {family.name} {family.help}\n" in text


def complaints(name: str, kind: str, text: str, labels: tuple[str, ...]) -> Iterator[str]:
    """What `promtool check metrics` would say, and this project's own rules."""
    words = name.split("_")
    if not re.fullmatch(r"dispatcher(_[a-z][a-z0-9]*)+", name):
        yield "not `dispatcher_` and snake case"
    if (kind == "counter") != name.endswith("_total"):
        yield "counters, and only they, end in _total"
    if kind == "histogram" and words[-1] not in ("seconds", "bytes", "messages"):
        yield "a histogram ends in its unit"
    if not text.strip() or not text.endswith("."):
        yield "help is a sentence"
    reserved = {"count", "sum", "bucket", "counter", "gauge", "histogram", "summary", "created"}
    if reserved & set(words):
        yield "a reserved or a type's word in the name"
    if {"ms", "milliseconds", "minutes", "hours", "kb", "kilobytes", "mib", "s", "sec", "b"} & set(words):
        yield "not a base unit, or an abbreviated one"
    if {"le", "quantile", "job", "instance"} & set(labels) or any(one in words[1:] for one in labels):
        yield "a label that is reserved or repeated in the name"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_follow_the_rules_of_prometheus(family: Any) -> None:
    """Prefix, base units, `_total`, help, and no reserved word."""
    assert not list(complaints(family.name, family.kind, family.help, family.labels))


def test_the_rules_catch_what_breaks_them() -> None:
    """The check above can fail."""
    assert list(complaints("dispatcher_things", "counter", "Things.", ()))
    assert list(complaints("dispatcher_delay_ms", "gauge", "Delay.", ()))
    assert list(complaints("dispatcher_held_bytes", "gauge", "", ()))
    assert list(complaints("held_bytes", "gauge", "Bytes.", ()))
    assert list(complaints("dispatcher_requests_total", "counter", "Requests.", ("instance",)))


def test_the_table_has_a_row_for_each_family() -> None:
    """One row a family, each with its help, its labels and their values."""
    lines = metrics_table().splitlines()
    assert lines[:2] == ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    assert len(lines) == 2 + len(FAMILIES) + 1
    for family, line in zip(FAMILIES, lines[2:], strict=False):
        assert line.startswith(f"| `{family.name}` | {family.kind} | `dispatcher`")
        assert all(value in line for value in family.values)
        assert line.endswith(f"| {family.help} |")


# ------------------------------------------------------------------------- the fixed sets are the core's


def words_in(module: Any, function: str, position: int) -> set[str]:
    """Literal words that `module` passes at a position of its calls of `function`."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == function:
            parts = ast.walk(node.args[position])
            found |= {str(part.value) for part in parts if isinstance(part, ast.Constant)}
    return found


def test_outcomes_are_the_words_the_core_settles_with() -> None:
    """No outcome is counted that is not exported from the start, and none is exported in vain."""
    used = {"delivered"}
    used |= words_in(settlement, "settle_failed", -1) | words_in(settlement, "settle", -1)
    used |= words_in(setback, "settle_failed", -1) | words_in(engine, "settle", -1)
    used |= words_in(expiry, "settle", -1)
    assert used == set(tally.OUTCOMES)


def test_causes_are_those_of_the_rulings_that_put_back() -> None:
    """Every ruling that retries or halts has its cause among the exported ones."""
    rulings = [one for one in vars(retry).values() if isinstance(one, retry.Ruling)]
    rulings += [*retry.RULINGS.values(), *retry.FAILURES.values()]
    putting_back = {
        one.cause
        for one in rulings
        if one.verdict in (retry.Verdict.RETRY, retry.Verdict.HALT) or one.may_be_systemic
    }
    assert putting_back | {"error_entry"} == set(tally.CAUSES)


def words_returned(function: Callable[..., Any]) -> set[str]:
    """Every literal word in a function's return statements."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    returns = [node for node in ast.walk(tree) if isinstance(node, ast.Return)]
    return {
        node.value
        for one in returns
        for node in ast.walk(one)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_reasons_are_those_a_batch_may_leave_for() -> None:
    """The words in the documentation of `Batch.reason`; those of the engine's readiness are among them."""
    documented = re.search(r'"""Why it left: ([a-z, \n]+)\."""', inspect.getsource(batch))
    assert documented is not None
    assert set(re.split(r",\s+", documented[1])) == set(tally.REASONS)
    assert {"messages", "linger"} <= words_returned(engine.Engine._ready) < set(tally.REASONS)


def test_refusals_are_the_words_of_the_runtime() -> None:
    """One for each kind of admission error."""
    assert set(REFUSAL_WORDS.values()) == set(tally.REFUSALS)
