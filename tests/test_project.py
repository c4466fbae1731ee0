"""The project's own papers: one version, declared dependencies, a licensed wheel, no trace of a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from datetime import date
from email.parser import HeaderParser
from importlib.metadata import packages_distributions
from typing import TYPE_CHECKING, Any

import pytest

import dispatcher
from tests.imports import ROOT, imports_of, package_sources

if TYPE_CHECKING:
    from pathlib import Path

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMES_WITH = {
    "yarl": "aiohttp",  # its URLs are part of aiohttp's own API
    "multidict": "aiohttp",  # so are its headers
    "uvloop": "",  # an extra: imported where it is there
    "rich": "",  # an extra of one command, which says so
}
"""Imported by the package, and declared by whom."""
TRACES = re.compile(
    r"(?<![\w.])/(?:home|root|Users|work)/[\w.]"  # a home or work directory
    r"|[A-Z]:\\Users\\"
    r"|(?:pypi\.(?:org|python)|pythonhosted\.org)|https?://[^\s\"']*/simple\b"  # a package index
)
LEFT_BY_TOOLS = re.compile(r"(^|/)(\.(?!ci/|gitignore$)|__pycache__/|(build|dist)/)|\.egg-info/")
"""Where there is no git to ask: caches, environments and what was built."""


def tracked() -> list[Path]:
    """Every file that is, or will be, in the repository; of an unpacked source archive, every file."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found = [name for name in done.stdout.split("\0") if name]
    else:
        found = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
        found = [name for name in found if not LEFT_BY_TOOLS.search(name)]
    return [ROOT / name for name in found if (ROOT / name).is_file()]


def names(requirements: list[str]) -> set[str]:
    """Normalized names of requirements."""
    return {re.split(r"[^\w.-]", one, maxsplit=1)[0].lower().replace("_", "-") for one in requirements}


def test_there_is_one_version() -> None:
    """In the metadata, in the package, and at the top of the changelog's releases."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(\d\S*)\] - (\S+)$", changelog, re.MULTILINE)
    assert PROJECT["version"] == dispatcher.__version__ == releases[0][0]
    days = [date.fromisoformat(day) for _, day in releases]
    assert days == sorted(days, reverse=True)
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert len(headings) == len(releases) + 1


def test_changes_are_kept_by_kind() -> None:
    """Keep a Changelog's words, and nothing under others."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    kinds = set(re.findall(r"^### (.+)$", changelog, re.MULTILINE))
    assert kinds
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_no_file_carries_a_trace_of_a_machine() -> None:
    """No path of a home or work directory, no host of a package index."""
    paths = tracked()
    assert ROOT / "pyproject.toml" in paths
    found = []
    for path in paths:
        for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), 1):
            if TRACES.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("word", ["home/a", "root/.x", "Users/b", "work/c"])
def test_traces_are_seen(word: str) -> None:
    """The pattern above finds what it is for, and leaves URLs alone."""
    assert TRACES.search(f"see /{word}/file")
    assert TRACES.search(f'"/{word}"')
    assert not TRACES.search(f"https://example.com/{word}")
    assert TRACES.search("https://files." + "pythonhosted" + ".org/x")
    assert TRACES.search("index-url = https://mirror.example/pypi" + "/simple")


def owners(module: str) -> set[str]:
    """Normalized names of the distributions that a top-level module comes from."""
    return {one.lower().replace("_", "-") for one in packages_distributions().get(module, [])}


def test_everything_the_package_imports_is_declared() -> None:
    """As a dependency, with the one that it comes with, or in an extra for users."""
    extras = PROJECT["optional-dependencies"]
    for_users = [one for name, given in extras.items() if name not in ("bench", "test") for one in given]
    declared = names(PROJECT["dependencies"] + for_users)
    used = {one.top for one in imports_of(package_sources()) if one.top and one.top != "dispatcher"}
    foreign = used - set(sys.stdlib_module_names)
    for name in foreign - COMES_WITH.keys():
        assert owners(name) & declared, f"{name} is not declared"
    assert {one for one in COMES_WITH.values() if one} <= declared
    assert COMES_WITH.keys() <= foreign, "the exceptions describe what is there"


def test_everything_the_tests_import_is_declared() -> None:
    """In the base or in the extra `test`, so that the README's one command is enough."""
    declared = names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"])
    for path in sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]):
        used = top_level_imports(ast.parse(path.read_text(encoding="utf-8"))) - COMES_WITH.keys()
        for name in used - set(sys.stdlib_module_names) - {"dispatcher", "tests", "benchmarks"}:
            assert owners(name) & declared, f"{path.relative_to(ROOT)} imports {name}"


def top_level_imports(tree: ast.Module) -> set[str]:
    """Top-level names of what a file imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_the_wheel_is_complete(tmp_path: Path) -> None:
    """Built here: the package and nothing else, typed, with its command and its license."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        files = set(wheel.namelist())
        information = next(name.partition("/")[0] for name in files if ".dist-info/" in name)
        metadata = HeaderParser().parsestr(wheel.read(f"{information}/METADATA").decode())
        commands = wheel.read(f"{information}/entry_points.txt").decode()
        license_text = wheel.read(f"{information}/licenses/LICENSE")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert license_text == (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in license_text
    assert metadata["Version"] == dispatcher.__version__
    assert "dispatcher = dispatcher.cli:main" in commands
    assert {name.partition("/")[0] for name in files} == {"dispatcher", information}
    assert "dispatcher/py.typed" in files
    sources = {str(one.relative_to(ROOT)) for one in (ROOT / "dispatcher").rglob("*.py")}
    assert sources <= files
    page = ROOT / "dispatcher" / "sidecar" / "page"
    assert {str(one.relative_to(ROOT)) for one in page.iterdir()} <= files
