"""What the package shows of itself: its public names, what importing it costs, its error tree."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys

import dispatcher
from dispatcher import errors, metrics, testing
from tests.imports import ROOT, package_sources

PUBLIC = [
    "Abandoned",
    "AdmissionError",
    "Attempt",
    "BatchSettings",
    "BlockingDelivery",
    "BlockingDispatcher",
    "Certainty",
    "Config",
    "ConfigError",
    "DeadlineExceeded",
    "Delivery",
    "DeliveryError",
    "Dispatcher",
    "DispatcherClosed",
    "DispatcherError",
    "DrainReport",
    "Endpoint",
    "FlowControl",
    "HTTPTransport",
    "Halted",
    "LimitSettings",
    "Message",
    "MessageInvalid",
    "MessageRejected",
    "MessageTooLarge",
    "Options",
    "OutboxError",
    "OutcomeUnknown",
    "Queue",
    "QueueFull",
    "QueueSettings",
    "QuotaExhausted",
    "Receipt",
    "RetriesExhausted",
    "RetrySettings",
    "Statistics",
    "StoreFull",
    "Transport",
    "TransportSettings",
    "__version__",
]
STRANGERS = ("prometheus_client", "argparse", "dispatcher.devserver", "dispatcher.cli", "dispatcher.metrics")
"""Not imported by `import dispatcher`: metrics, the programs and what only they need."""
MODULES_MAX = 420
"""Modules in memory after `import dispatcher`, those of its dependencies included: 350 when this was set."""


def modules_after(statement: str) -> set[str]:
    """Names of all loaded modules after one statement in a fresh interpreter."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def test_the_public_names_are_pinned() -> None:
    """Nothing joins or leaves the public API unnoticed, and the list is kept in order."""
    assert dispatcher.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC


def test_every_public_name_is_there() -> None:
    """Also those of the two public modules beside the package."""
    for module in (dispatcher, metrics, testing):
        assert list(module.__all__) == sorted(module.__all__)
        for name in module.__all__:
            assert getattr(module, name) is not None


def test_everything_public_is_documented() -> None:
    """Each public class and function says what it is, in its own words."""
    for module in (dispatcher, metrics, testing):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                assert value.__doc__, f"{module.__name__}.{name} says nothing"


def test_importing_the_package_is_light() -> None:
    """No metrics, no program, no argument parser comes with it, and not many modules at all."""
    loaded = modules_after("import dispatcher")
    strangers = {one for one in loaded if one.startswith(STRANGERS)}
    assert not strangers
    assert "dispatcher.dispatcher" in loaded
    assert len(loaded) <= MODULES_MAX


def test_the_strangers_would_be_seen() -> None:
    """The check above can fail: where they are needed, they are loaded."""
    loaded = modules_after("import dispatcher.metrics, dispatcher.testing, dispatcher.cli")
    assert loaded >= set(STRANGERS)


def test_every_module_says_what_it_is() -> None:
    """Each file opens with a docstring, and can be imported (all but the command itself)."""
    for name, source in package_sources().items():
        assert ast.get_docstring(ast.parse(source)), f"{name} does not say what it is"
        if name != "dispatcher.__main__":
            assert importlib.import_module(name).__name__ == name


def test_the_error_tree_is_the_one_drawn() -> None:
    """The drawing in `errors` has every class, under the base it really has."""
    assert errors.__doc__ is not None
    stack: list[tuple[int, str]] = [(-1, "Exception")]
    drawn = set()
    for indent, name, other in re.findall(r"^([ │├└─]*)([A-Z]\w+)(?: \((\w+)\))?", tree(), re.MULTILINE):
        while stack[-1][0] >= len(indent):
            stack.pop()
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        assert bases == [stack[-1][1], *([other] if other else [])]
        stack.append((len(indent), name))
        drawn.add(name)
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert drawn == {name for name in classes if issubclass(getattr(errors, name), errors.DispatcherError)}


def tree() -> str:
    """The drawing in the docstring of `errors`."""
    assert errors.__doc__ is not None
    return errors.__doc__.split("::\n\n", 1)[1].split("\n\n", 1)[0]
