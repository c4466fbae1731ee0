"""Where a configuration's values come from: keywords, the environment, a TOML file, in this order.

Every source is read into the same shape, dotted names and checked values, and the nearest one wins. An
unknown name is an error that names the nearest right one and never shows the value: it may be a secret.
Called by `Config.load` and the sidecar's configuration; knows settings, not the classes that hold them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dispatcher.settings import Setting

PREFIX: Final = "DISPATCHER_"
CONFIG_FILE: Final = "DISPATCHER_CONFIG"
TOKEN_FILE: Final = "DISPATCHER_TOKEN_FILE"  # noqa: S105 - a variable's name
QUEUES: Final = "queues"
"""A section whose names are the user's: each has a section of its own, which `Config` checks."""
SERVE: Final = "serve"
"""The daemon's section: in the file and the environment of a program that is no daemon it is no mistake."""
OUTBOX: Final = "outbox"
"""The section of its outbox, likewise."""
DAEMON_PREFIXES: Final = ("DISPATCHER_SERVE_", "DISPATCHER_OUTBOX_")
DEFAULT: Final = "default"
"""The origin of what nobody gave."""
_MISNAMED: Final = {"DISPATCHER_TOKEN": "QSTASH_TOKEN", "DISPATCHER_URL": "QSTASH_URL"}
# Kubernetes puts these into the containers beside a Service called `dispatcher` or `dispatcher-anything`:
# nobody's mistake, though one of them may have the name of a setting (`dispatcher-serve`'s port).
_SERVICE_LINK: Final = re.compile(
    r"""DISPATCHER_(?:[A-Z0-9_]+_)?(?:
        SERVICE_HOST=[0-9a-fA-F.:]+
      | SERVICE_PORT(?:_[A-Z0-9_]+)?=\d+
      | PORT(?:_\d+_(?:TCP|UDP|SCTP))?=(?:tcp|udp|sctp)://[0-9a-fA-F.:\[\]]+:\d+
      | PORT_\d+_(?:TCP|UDP|SCTP)_(?:PROTO=(?:tcp|udp|sctp)|PORT=\d+|ADDR=[0-9a-fA-F.:]+)
    )""",
    re.VERBOSE,
)


class Given(NamedTuple):
    """What was given anywhere, by dotted name."""

    values: dict[str, Any]
    origins: dict[str, str]
    """Where each value comes from: `flag`, `environment NAME` or `file PATH`."""


def read(
    settings: Sequence[Setting],
    environment: Mapping[str, str],
    file: str | Path | None,
    overrides: Mapping[str, Any],
) -> Given:
    """The values that are given anywhere; keywords before the environment before the file.

    Raises:
        ConfigError: A name is unknown, a value wrong, a file cannot be read, or there is no token.
    """
    path = file or environment.get(CONFIG_FILE)
    from_file = _from_file(settings, Path(path)) if path else {}
    from_environment = _from_environment(settings, environment)
    from_keywords = _from_keywords(settings, overrides)
    values = from_file | from_environment | from_keywords
    if any(one.path == "token" for one in settings) and "token" not in values:
        wanted = f"set QSTASH_TOKEN, or {TOKEN_FILE} to a file that holds it"
        raise ConfigError("token", None, wanted, problem="it is missing")
    origins = dict.fromkeys(from_file, f"file {path}")
    origins |= {one.path: f"environment {one.env}" for one in settings if one.path in from_environment}
    if token_file := environment.get(TOKEN_FILE):
        origins["token"] = f"file {token_file}"
    return Given(values, origins | dict.fromkeys(from_keywords, "flag"))


def within(values: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """The values of one section (or those of none), by their bare names."""
    split = ((path.rpartition("."), value) for path, value in values.items())
    return {name: value for (owner, _, name), value in split if owner == section}


def _from_file(settings: Sequence[Setting], path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable("file", path, error, "wanted is a TOML file") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError("file", str(path), f"wanted is a TOML file: {error}") from None
    known = {one.path: one for one in settings}
    values = {QUEUES: content.pop(QUEUES)} if QUEUES in content else {}
    sections = _sections(settings)
    for section in {SERVE, OUTBOX} - sections:
        content.pop(section, None)
    for name, value in _flat(content, sections):
        one = known.get(name) or _refuse_name(name, known, f" (in {path})")
        values[name] = _checked(one, value, f" (in {path})")
    return values


def _from_environment(settings: Sequence[Setting], environment: Mapping[str, str]) -> dict[str, Any]:
    known = {one.env: one for one in settings}
    values = {}
    for name, text in environment.items():
        if name.startswith(PREFIX) and _SERVICE_LINK.fullmatch(f"{name}={text}"):
            continue
        one = known.get(name)
        if one is None:
            _check_foreign(name, known)
        elif text.strip() or one.is_optional:
            values[one.path] = _parsed(one, text, f" (in {name})")
    if token_file := environment.get(TOKEN_FILE):
        values["token"] = _token_in(Path(token_file))
    return values


def _from_keywords(settings: Sequence[Setting], overrides: Mapping[str, Any]) -> dict[str, Any]:
    known = {one.flat: one for one in settings} | {one.path: one for one in settings}
    given = dict(overrides)
    values = {QUEUES: given.pop(QUEUES)} if QUEUES in given else {}
    for name, value in _flat(given, _sections(settings)):
        one = known.get(name) or _refuse_name(name, known)
        if value is not None or one.is_optional:
            values[one.path] = _checked(one, value)
    return values


def _sections(settings: Iterable[Setting]) -> set[str]:
    return {one.path.rpartition(".")[0] for one in settings} - {""}


def _flat(given: Mapping[str, Any], sections: set[str]) -> Iterator[tuple[str, Any]]:
    """Names with dots for what is nested; a section may be a mapping or the record itself."""
    for name, value in given.items():
        if name not in sections:
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", part) for inner, part in value.items())
        elif is_dataclass(value):
            yield from ((f"{name}.{one.name}", getattr(value, one.name)) for one in fields(value))
        else:
            raise ConfigError(name, type(value).__name__, "wanted is a section: names and values")


def _checked(one: Setting, value: Any, where: str = "") -> Any:
    # TOML has no null: there `none` is written as text.
    if one.is_optional and isinstance(value, str) and value.strip().lower() in ("", "none"):
        return None
    try:
        return one.check(value)
    except ConfigError as error:
        raise ConfigError(error.field, error.value, error.allowed + where) from None


def _parsed(one: Setting, text: str, where: str) -> Any:
    try:
        return one.parse(text)
    except ConfigError as error:
        raise ConfigError(error.field, error.value, error.allowed + where) from None


def _token_in(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise _unreadable(TOKEN_FILE, path, error, "wanted is a file with nothing but the token") from None
    except ValueError:
        raise ConfigError(TOKEN_FILE, str(path), "wanted is a text file with nothing but the token") from None
    if not token:
        problem = f"{str(path)!r} is empty"
        raise ConfigError(TOKEN_FILE, str(path), "wanted is the token", problem=problem)
    return token


def _unreadable(field: str, path: Path, error: OSError, wanted: str) -> ConfigError:
    problem = f"{str(path)!r} cannot be read: {error.strerror}"
    return ConfigError(field, str(path), wanted, problem=problem)


def _check_foreign(name: str, known: Iterable[str]) -> None:
    """Other programs' variables are none of our business, a misspelt one of ours is."""
    if not name.startswith(PREFIX) or name in (CONFIG_FILE, TOKEN_FILE):
        return
    # Beside a daemon in the same environment, the library's own programs leave the daemon's variables alone.
    if not name.startswith(DAEMON_PREFIXES) or any(one.startswith(DAEMON_PREFIXES) for one in known):
        _refuse_name(name, (*known, CONFIG_FILE, TOKEN_FILE))


def _refuse_name(name: str, known: Iterable[str], where: str = "") -> NoReturn:
    near = _MISNAMED.get(name) or next(iter(get_close_matches(name, known, n=1, cutoff=0.0)), "")
    raise ConfigError(name, None, f"did you mean `{near}`?{where}", problem="there is no such setting")
