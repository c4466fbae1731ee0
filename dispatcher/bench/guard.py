"""Keeps a load away from the real service, unless it is asked for twice and bounded.

A load on the service costs its operator's capacity and the account's quota, and its messages are delivered to
whatever the destination is. Redirects are followed by nothing in this package.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from dispatcher.errors import ConfigError

SERVICE_DOMAIN: Final = "upstash.io"


def is_real_service(url: str) -> bool:
    """A host of the service itself, in any region."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    return host == SERVICE_DOMAIN or host.endswith(f".{SERVICE_DOMAIN}")


def check_target(url: str, *, is_meant: bool, max_messages: int | None, has_destinations: bool) -> None:
    """Raises `ConfigError` for a load on the real service that was not asked for, or has no bound."""
    if not is_real_service(url):
        return
    host = urlsplit(url).hostname
    problem = f"{host} is the real service, and this would put load on it"
    if not is_meant:
        wanted = "leave the URL out for a local upstream; or, if it is meant, add --real-service"
        raise ConfigError("target", url, f"{wanted} and --max-messages", problem=problem)
    if max_messages is None:
        raise ConfigError("max-messages", None, "wanted is how many it may send at most", problem=problem)
    if not has_destinations:
        wanted = "wanted are URLs of your own: the service delivers every message"
        raise ConfigError("destinations", None, wanted, problem=problem)
