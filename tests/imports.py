"""Every import of the package, read from its source: who, whom, on which line, and in which way."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "dispatcher"


class Import(NamedTuple):
    """One imported module."""

    importer: str
    target: str
    """The module in full; of a package outside, as far as the source names it."""
    line: int
    is_type_only: bool
    """Under `if TYPE_CHECKING:`; it does not happen at run time."""
    is_deferred: bool
    """Inside a function; it happens when that is called."""
    is_dynamic: bool = False
    """By a call; the target is `""` unless it stands there as a literal."""

    @property
    def top(self) -> str:
        """The outermost package of the target."""
        return self.target.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.target or 'what it computes'}"


def package_sources() -> dict[str, str]:
    """Source by module name; a package's is that of its `__init__`."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def imports_of(sources: Mapping[str, str]) -> list[Import]:
    """Every import in these modules."""
    packages = {name.rpartition(".")[0] for name in sources} | {PACKAGE}
    found: list[Import] = []
    for name, source in sources.items():
        scanner = _Scanner(name, name in packages, sources)
        scanner.visit(_parsed(source))
        found += scanner.found
    return found


@lru_cache(maxsize=512)
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


class _Scanner(ast.NodeVisitor):
    def __init__(self, importer: str, is_package: bool, modules: Mapping[str, str]) -> None:
        self.found: list[Import] = []
        self._importer = importer
        self._package = importer if is_package else importer.rpartition(".")[0]
        self._modules = modules
        self._is_type_only = False
        self._depth = 0

    def visit_If(self, node: ast.If) -> None:
        """The body of `if TYPE_CHECKING:` is for type checkers."""
        is_guard = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        before, self._is_type_only = self._is_type_only, self._is_type_only or is_guard
        for child in node.body:
            self.visit(child)
        self._is_type_only = before
        for other in node.orelse:
            self.visit(other)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """What stands in a function is imported when it is called."""
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - the name `ast` calls

    def visit_Import(self, node: ast.Import) -> None:
        """`import a.b`"""
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """`from a import b`: `a.b` if that is a module of ours, else `a`."""
        base = node.module or ""
        if node.level:
            parents = self._package.split(".")
            kept = parents[: len(parents) - node.level + 1]
            base = ".".join([*kept, base] if base else kept)
        for target in self._targets(base, node):
            self._add(target, node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        """`import_module("a")` and `__import__("a")`"""
        if ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__") and node.args:
            argument = node.args[0]
            literal = argument.value if isinstance(argument, ast.Constant) else ""
            self._add(str(literal), node.lineno, is_dynamic=True)
        self.generic_visit(node)

    def _targets(self, base: str, node: ast.ImportFrom) -> Iterator[str]:
        names = [f"{base}.{alias.name}" for alias in node.names]
        submodules = [name for name in names if name in self._modules]
        yield from submodules
        if len(submodules) < len(names):
            yield base

    def _add(self, target: str, line: int, *, is_dynamic: bool = False) -> None:
        self.found.append(
            Import(self._importer, target, line, self._is_type_only, self._depth > 0, is_dynamic)
        )
