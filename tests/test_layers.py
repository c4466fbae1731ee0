"""The law of the house: imports point down only, the core is pure, some packages are known in one place."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

import pytest

from tests.imports import PACKAGE, Import, imports_of, package_sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

LAYERS = (
    ("errors", "message"),
    ("checks", "options", "sdk", "ndjson", "settings", "sections", "sources", "config"),
    ("core",),
    ("transport", "delivery", "admission", "identity", "streams", "statistics", "renewal", "repeats"),
    ("observing", "news"),
    ("pump", "submission"),
    ("dispatcher",),
    ("blocking", "outbox"),
    ("",),  # the public API: `dispatcher/__init__.py`
    ("families", "outbox_families", "metrics", "tracing"),
    ("sidecar",),
    ("devserver",),
    ("bench", "scripted", "testing"),
    ("cli",),
    ("__main__",),
)
"""From the bottom up; inside a layer imports may go sideways, but never round in a circle."""
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
CORE, PUBLIC = RANKS["core"], RANKS[""]

PURE = {
    *("asyncio", "anyio", "aiohttp", "time", "random", "os", "logging"),
    *("socket", "ssl", "selectors", "threading", "multiprocessing", "concurrent", "subprocess"),
    *("secrets", "uuid", "datetime", "pathlib", "io", "sys"),
}
"""Loops, clocks, sockets, tasks, randomness, files and logs: none of them inside `core`, in any form."""
KNOWN_ONLY_IN = {
    "aiohttp": ("transport", "devserver", "sidecar"),
    "yarl": ("transport", "sidecar"),
    "prometheus_client": ("metrics", "sidecar"),
    "opentelemetry": ("tracing", "sidecar"),
    "orjson": ("core", "devserver", "ndjson", "sdk", "scripted", "sidecar", "cli", "outbox"),
    "anyio": ("pump", "testing", "sidecar", "cli"),
    "uvloop": ("cli",),
    "rich": ("cli",),
    "argparse": ("cli", "settings", "config", "sidecar"),
    "logging": ("pump", "renewal", "repeats", "news", "blocking", "devserver", "sidecar", "cli", "outbox"),
    "threading": ("blocking", "metrics", "pump", "dispatcher", "outbox"),
    "sqlite3": ("outbox",),
    "redis": ("outbox",),
    "hiredis": ("outbox",),
    "concurrent": ("blocking",),
}
"""Where each package may be imported, by layers' names; the rest of the world is free."""
DEFERRED_UP = {
    ("dispatcher.message", "dispatcher.sdk"): "`Message.from_sdk` is public, and costs nothing until called",
}
"""Imports inside a function that may look up, with their reason."""


def layer_of(module: str) -> str:
    """The part of a module's name that has a rank: the one below the package."""
    return module.removeprefix(PACKAGE).removeprefix(".").partition(".")[0]


def violations(sources: Mapping[str, str]) -> list[str]:
    """Every import that breaks the law, each with its line."""
    unknown = sorted({name for name in sources if layer_of(name) not in RANKS})
    found = [f"{name} has no layer: give it one in LAYERS" for name in unknown]
    known = [one for one in imports_of(sources) if layer_of(one.importer) in RANKS]
    for one in known:
        rules = inside(one) if one.top == PACKAGE else outside(one)
        found += [f"{one}: {why}" for why in rules]
    return found + list(circles(known))


def inside(one: Import) -> Iterator[str]:
    """Between modules of ours."""
    importer = RANKS[layer_of(one.importer)]
    target = RANKS.get(layer_of(one.target))
    if target is None:
        return
    if one.is_type_only:
        bound = CORE if importer <= CORE else max(PUBLIC - 1, importer)
        # Below the core a message's type may name its options; above it, helpers name their dispatcher.
        if importer < CORE and target >= CORE:
            yield "even for its types this must not look up to the core"
        elif target > bound:
            yield "even for its types this must not look so far up"
    elif target > importer and not (one.is_deferred and (one.importer, one.target) in DEFERRED_UP):
        yield "imports point down only"


def outside(one: Import) -> Iterator[str]:
    """Of packages that are not ours."""
    layer = layer_of(one.importer)
    if layer == "core" and one.top in PURE:
        yield "the core is pure, also in its types"
    if one.is_dynamic and layer != "cli":
        yield "an import that a call makes is seen by no tool; only the commands may"
    if layer not in KNOWN_ONLY_IN.get(one.top, (layer,)):
        yield f"{one.top} is known only in {', '.join(KNOWN_ONLY_IN[one.top])}"
    if one.top == "argparse" and layer != "cli" and not (one.is_type_only or one.is_deferred):
        yield "the library parses no arguments: import it where a command needs it"


def circles(imports: Iterable[Import]) -> Iterator[str]:
    """Modules that import each other when they are loaded."""
    graph: dict[str, set[str]] = {}
    for one in imports:
        if one.top == PACKAGE and not one.is_type_only and not one.is_deferred:
            graph.setdefault(one.importer, set()).add(one.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"a circle: {' ← '.join(error.args[1])}"


def test_imports_point_down_only() -> None:
    """No module of the package breaks the law; what does is named with its line."""
    found = violations(package_sources())
    assert not found, "\n" + "\n".join(found)


def test_every_layer_and_every_exception_is_in_use() -> None:
    """The tables of this file describe what is there, and nothing that has gone."""
    sources = package_sources()
    assert {layer_of(name) for name in sources} >= RANKS.keys()
    seen = {(one.importer, one.target) for one in imports_of(sources) if one.is_deferred}
    assert seen >= DEFERRED_UP.keys()


PLANTED = [
    ("core.planted", "import asyncio", "the core is pure"),
    ("core.planted", "from os import path", "the core is pure"),
    ("core.planted", "import time as clock", "the core is pure"),
    ("core.planted", "def now():\n    import time\n    return time.monotonic()", "the core is pure"),
    (
        "core.planted",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from random import Random",
        "the core is pure",
    ),
    ("core.planted", "import importlib\nimportlib.import_module('logging')", "the core is pure"),
    ("core.planted", "from dispatcher.transport import HTTPTransport", "down only"),
    ("core.planted", "from ..transport import HTTPTransport", "down only"),
    ("core.planted", "from .. import transport", "down only"),
    ("core.planted", "def post():\n    from dispatcher import transport", "down only"),
    (
        "core.planted",
        "import typing\nif typing.TYPE_CHECKING:\n    from dispatcher.delivery import Delivery",
        "even for its types",
    ),
    ("errors", "from dispatcher.config import Config", "down only"),
    ("config", "from dispatcher import Message", "down only"),
    ("checks", "from dispatcher.core import wire", "down only"),
    ("streams", "from dispatcher.dispatcher import Dispatcher", "down only"),
    ("dispatcher", "import prometheus_client", "known only in metrics"),
    ("dispatcher", "from opentelemetry import trace", "known only in tracing"),
    ("dispatcher", "from dispatcher.tracing import instrument", "down only"),
    ("statistics", "from aiohttp import web", "known only in transport"),
    ("streams", "from threading import Lock", "known only in blocking"),
    ("metrics", "from dispatcher.devserver.server import LocalUpstream", "down only"),
    ("metrics", "from dispatcher.sidecar.settings import ServeSettings", "down only"),
    ("sidecar.planted", "from dispatcher.devserver.server import LocalUpstream", "down only"),
    ("sidecar.planted", "from dispatcher.cli.loop import run_in_loop", "down only"),
    ("sidecar.planted", "import argparse", "parses no arguments"),
    ("devserver.planted", "from dispatcher.testing import local_upstream", "down only"),
    ("settings", "import argparse", "parses no arguments"),
    ("transport", "__import__('orjson')", "seen by no tool"),
    ("novelty", "import math", "has no layer"),
]


@pytest.mark.parametrize(("module", "source", "why"), PLANTED)
def test_a_planted_violation_is_caught(module: str, source: str, why: str) -> None:
    """Each article of the law can be broken, and then it is this one that says so, with the line."""
    name = f"{PACKAGE}.{module}"
    found = violations({**package_sources(), name: source})
    mine = [one for one in found if one.startswith(name)]
    assert any(why in one for one in mine), found
    lines = source.count("\n") + 1
    assert "no layer" in why or any(f"line {number}, " in mine[0] for number in range(1, lines + 1))


def test_a_planted_circle_is_caught() -> None:
    """Two modules of one layer that need each other when they are loaded."""
    planted = {
        "dispatcher.core.one": "from dispatcher.core import two",
        "dispatcher.core.two": "from dispatcher.core.one import Thing",
    }
    assert any("a circle" in one for one in violations({**package_sources(), **planted}))


def test_types_may_look_sideways() -> None:
    """What is imported for types only makes no circle and may name a neighbour, or one just above."""
    guard = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
    planted = {
        "dispatcher.core.one": "from dispatcher.core import two",
        "dispatcher.core.two": f"{guard}from dispatcher.core.one import Thing",
        "dispatcher.statistics": f"{guard}from dispatcher.dispatcher import Dispatcher",
    }
    assert violations({**package_sources(), **planted}) == violations(package_sources())
