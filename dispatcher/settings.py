"""One setting: declared once beside its field, and from there checked, read, listed and explained.

`setting(…)` stands in the place of a dataclass default and carries meaning, unit, range, default and advice;
`settings_of` turns the fields of a configuration class into `Setting` records, from which come the checks,
the environment's names, the flags of the commands and the table in the README. A secret's value is never in a
text. Knows no particular setting: those are in `config`, its only caller.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import lru_cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin, get_type_hints

from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

MASK: Final = "***"
SECRET_MIN: Final = 8
"""Characters from which on a secret is looked for in texts; a shorter one is no secret, and part of words."""
_METADATA: Final = "dispatcher.setting"
_SPECIAL_ENVIRONMENT: Final = {"token": "QSTASH_TOKEN", "url": "QSTASH_URL"}
_WORDS: Final = {int: "an int", float: "a number", bool: "true or false", str: "a non-empty str"}
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_FLAG_PREFIX: Final = "setting:"
_FLOAT_BITS: Final = 1_000  # a longer int is no float


def setting(
    default: Any = MISSING,
    *,
    meaning: str,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    advice: str = "",
    secret: bool = False,
    label: bool = False,
) -> Any:
    """A field of a configuration class; its type and choices come from the annotation.

    Args:
        default: Absent means that it must be given.
        meaning: One sentence, for the README and `--help`.
        unit: Of the number.
        minimum: The smallest allowed value.
        maximum: The largest allowed value.
        above: What it must exceed, where there is no smallest value.
        advice: When to change it.
        secret: Never shown, never a flag.
        label: The number names something, as a port does: its thousands are not set apart.
    """
    facts = {
        "meaning": meaning,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "advice": advice,
        "is_secret": secret,
        "is_label": label,
    }
    return field(default=default, metadata={_METADATA: facts}, repr=not secret)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one setting; see `setting`."""

    path: str
    """Its dotted name, such as `retry.max_attempts`."""
    kind: type
    default: Any
    is_optional: bool
    """`None` is allowed, and written `none` where only text fits."""
    choices: tuple[str, ...]
    meaning: str
    unit: str
    minimum: float | None
    maximum: float | None
    above: float | None
    advice: str
    is_secret: bool
    is_label: bool

    @property
    def env(self) -> str:
        """Its name in the environment, such as `DISPATCHER_RETRY_MAX_ATTEMPTS`."""
        return _SPECIAL_ENVIRONMENT.get(self.path) or "DISPATCHER_" + self.flat.upper()

    @property
    def flag(self) -> str:
        """Its name among a command's flags, such as `--retry-max-attempts`."""
        return "--" + self.flat.replace("_", "-")

    @property
    def flat(self) -> str:
        """Its name as a keyword of `Config.load`, such as `retry_max_attempts`."""
        return self.path.replace(".", "_")

    @property
    def type(self) -> str:
        """Its type's name, with `or none` where that is allowed."""
        return self.kind.__name__ + (" or none" if self.is_optional else "")

    @property
    def range(self) -> str:
        """What a value may be, such as `1 to 10,000`; empty for free text."""
        if self.choices or self.kind is bool:
            return ", ".join(self.choices or ("true", "false"))
        low = f"> {_number(self.above)}" if self.above is not None else ""
        low = low or (f"≥ {_number(self.minimum)}" if self.minimum is not None else "")
        if self.maximum is None:
            return low
        if self.minimum is not None:
            return f"{_number(self.minimum)} to {_number(self.maximum)}"
        return ", ".join(part for part in (low, f"≤ {_number(self.maximum)}") if part)

    @property
    def allowed(self) -> str:
        """The end of an error's text."""
        what = "one of" if self.choices else _WORDS[self.kind]
        scope = "" if self.kind is bool else " ".join(part for part in (self.range, self.unit) if part)
        joint = " " if self.choices else ", "
        return f"allowed is {what}{joint + scope if scope else ''}{', or none' if self.is_optional else ''}"

    def check(self, value: Any) -> Any:
        """The value in its own type (an int where a float is wanted becomes one).

        Raises:
            ConfigError: It is of another type, out of range, or no choice.
        """
        if value is None and self.is_optional:
            return None
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if self.kind is float and is_int and value.bit_length() < _FLOAT_BITS:
            value = float(value)
        if not self._is_right(value):
            raise ConfigError(
                self.path, MASK if self.is_secret and value is not None else value, self.allowed
            )
        return value

    def _is_right(self, value: Any) -> bool:
        if not isinstance(value, self.kind) or (isinstance(value, bool) and self.kind is not bool):
            return False
        if isinstance(value, str):
            return value in self.choices if self.choices else bool(value)
        return self._is_in_range(value)

    def _is_in_range(self, value: Any) -> bool:
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.above is None or value > self.above)
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
        )

    def parse(self, text: str) -> Any:
        """The value that a text stands for, in the environment or after a flag.

        Raises:
            ConfigError: As `check`.
        """
        word = text.strip()
        if self.is_optional and word.lower() in ("", "none"):
            return None
        try:
            value = _BOOLEANS[word.lower()] if self.kind is bool else self.kind(word)
        except (KeyError, ValueError):
            raise ConfigError(self.path, text, self.allowed) from None
        return self.check(value)

    @property
    def default_text(self) -> str:
        """The default with its unit, `none`, or `required`."""
        if self.default is MISSING:
            return "required"
        return "none" if self.default is None else f"{self.show(self.default)} {self.unit}".strip()

    def show(self, value: Any) -> str:
        """A value for people: thousands apart, `none`, a secret masked."""
        if self.is_secret:
            return MASK
        if value is None or isinstance(value, bool):
            return "none" if value is None else str(value).lower()
        return str(value) if isinstance(value, str) or self.is_label else _number(value)


@lru_cache(maxsize=64)
def settings_of(kind: type, prefix: str = "") -> tuple[Setting, ...]:
    """Every setting of a configuration class, those of its sections after its own, in their order."""
    hints = get_type_hints(kind)
    own: list[Setting] = []
    nested: list[Setting] = []
    for one in fields(kind):
        hint = hints[one.name]
        if is_dataclass(hint) and isinstance(hint, type):
            nested.extend(settings_of(hint, f"{one.name}."))
        elif _METADATA in one.metadata:
            own.append(_setting(prefix + one.name, hint, one.default, one.metadata[_METADATA]))
    return (*own, *nested)


def _setting(path: str, hint: Any, default: Any, facts: dict[str, Any]) -> Setting:
    is_optional = get_origin(hint) is UnionType and NoneType in get_args(hint)
    if is_optional:
        hint = next(part for part in get_args(hint) if part is not NoneType)
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = str if choices else hint
    return Setting(path=path, kind=kind, default=default, is_optional=is_optional, choices=choices, **facts)


def check_fields(record: object, prefix: str) -> None:
    """Check each field of a frozen record that is being made, and give it its own type."""
    kind: Any = type(record)  # mypy takes `__hash__` of the instances for that of the type
    for one in settings_of(kind, prefix):
        name = one.path.removeprefix(prefix)
        if "." not in name:  # a section has checked its own
            object.__setattr__(record, name, one.check(getattr(record, name)))


def table(settings: Iterable[Setting]) -> str:
    """The settings as a Markdown table."""
    rows = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for one in settings:
        allowed = (one.range or "text") + (" or none" if one.is_optional else "")
        special = f" (`{one.env}`)" if one.path in _SPECIAL_ENVIRONMENT else ""
        meaning = f"{one.meaning} {one.advice}".strip()
        cells = (f"`{one.path}`{special}", one.default_text, allowed, meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def add_arguments(
    parser: argparse.ArgumentParser, settings: Iterable[Setting], short: Mapping[str, str] | None = None
) -> None:
    """A flag for each setting that is no secret; what is not given leaves no trace in the namespace.

    `short` has more flags for some of them, by dotted name.
    """
    from argparse import SUPPRESS  # commands need it, the library does not

    group = parser.add_argument_group(
        "settings", "also in the environment and in a TOML file; see the README"
    )
    for one in settings:
        if one.is_secret:
            continue
        text = f"{one.meaning} [{one.range or one.kind.__name__}; default {one.default_text}]"
        group.add_argument(
            *(flag for flag in ((short or {}).get(one.path), one.flag) if flag),
            dest=_FLAG_PREFIX + one.flat,
            type=_flag_type(one),
            default=SUPPRESS,
            metavar=one.path.rpartition(".")[2].upper(),
            help=text.replace("%", "%%"),
        )


def _flag_type(one: Setting) -> Any:
    from argparse import ArgumentTypeError

    def parse(text: str) -> Any:
        try:
            return one.parse(text)
        except ConfigError as error:
            raise ArgumentTypeError(f"{text!r} is not allowed; {error.allowed}") from None

    return parse


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `add_arguments` said, as keywords for `Config.load`."""
    said = vars(arguments).items()
    return {name.removeprefix(_FLAG_PREFIX): value for name, value in said if name.startswith(_FLAG_PREFIX)}


def _number(value: float | None) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"
