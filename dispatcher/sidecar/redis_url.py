"""The URL of a shared outbox: taken apart where it is read, so that its password goes no further.

What is kept, compared, logged and shown is the URL without the password; the whole one is put together where
the store is made. No error here has any part of a URL but its scheme. Used by `outbox_settings`,
`outbox_redis` and the commands that want a file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from dispatcher.errors import ConfigError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

SCHEMES: Final = ("redis", "rediss", "unix")
TLS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
WANTED: Final = (
    "wanted is a file, or redis://[USER@]HOST[:PORT][/DB], rediss://… (TLS; its query may have "
    f"{', '.join(TLS)}), unix://[USER@]/PATH[?db=N]"
)
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(rediss?|unix):", re.IGNORECASE)


class Parts(NamedTuple):
    """A URL taken apart."""

    shown: str
    """Without the password."""
    password: str | None


def is_url(text: str) -> bool:
    """It is meant as a URL, right or wrong, and not as the name of a file."""
    return _URL.match(text) is not None


def take_apart(text: str, field: str) -> Parts:
    """The URL without its password, and this.

    Args:
        field: The setting's name, for the error.

    Raises:
        ConfigError: It is no URL of a Redis; its text is not in the error.
    """
    try:
        split = urlsplit(text)
        problem = _problem(split)
    except ValueError:  # its words hold the text
        raise _refusal(text, field, "it cannot be read") from None
    if problem:
        raise _refusal(text, field, problem)
    user, at, place = split.netloc.rpartition("@")
    name = user.partition(":")[0]
    shown = split._replace(netloc=f"{name}@{place}" if name else place).geturl()
    if split.scheme == "unix" and not shown.startswith("unix://"):
        shown = shown.replace("unix:", "unix://", 1)  # `geturl` leaves an empty place out
    password = unquote(split.password) if at and split.password else None
    return Parts(shown, password)


def put_together(shown: str, password: str | None) -> str:
    """The whole URL, as the client wants it: with the password, and names of certificates checked."""
    split = urlsplit(shown)
    place, query = split.netloc, dict(parse_qsl(split.query))
    if password is not None:
        name, _, host = place.rpartition("@")
        place = f"{name}:{quote(password, safe='')}@{host}"
    if split.scheme == "rediss":
        query.setdefault("ssl_check_hostname", "true")  # old versions of the client leave it out
    tail = f"?{urlencode(query)}" if query else ""
    return f"{split.scheme}://{place}{split.path}{tail}"


def _problem(split: SplitResult) -> str:
    """What is wrong, in words without any of it; empty: nothing."""
    allowed = {"redis": (), "rediss": TLS, "unix": ("db",)}.get(split.scheme)
    query = parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query))
    if allowed is None:
        return "of a URL only these schemes are known: redis, rediss, unix"
    if split.fragment:
        return "a URL has no `#`: in a password it is written %23"
    if any(name not in allowed for name, _ in query):
        return "something stands in its query that is not allowed there"
    if split.scheme == "unix":
        return "" if split.path.startswith("/") and not split.hostname else "it has no path"
    if not split.hostname:
        return "it has no host"
    if split.port == 0:
        return "no port is 0"
    return "" if re.fullmatch(r"/?[0-9]*", split.path) else "its path is not the number of a database"


def _refusal(text: str, field: str, problem: str) -> ConfigError:
    scheme = text.partition(":")[0].lower()
    value = f"{scheme}://…" if scheme in SCHEMES else "(a URL)"
    return ConfigError(field, value, WANTED, problem=f"{problem} (the URL is not shown)")
