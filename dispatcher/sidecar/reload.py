"""What a new configuration may change in a running daemon, and what it may not. Pure; used by `daemon`.

The token, the callers' tokens, the bounds of the intake, of what is held and of what is in flight, and how
long a caller of an outbox waits can change between two requests. Everything else is built into sockets, lanes
or files: for that the process has to be started again, which is said for each by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from dispatcher.sidecar.settings import SidecarConfig, every_setting
from dispatcher.sources import OUTBOX, QUEUES, SERVE

if TYPE_CHECKING:
    from dispatcher.config import Config
    from dispatcher.settings import Setting

RESPOND_AFTER: Final = f"{OUTBOX}.respond_after"
ROOM: Final = ("max_messages", "max_bytes")
CHANGEABLE: Final = frozenset(
    f"{SERVE}.{name}"
    for name in (
        *("tokens", "tokens_file", "proxy", "patience", "max_connections", "max_head_bytes"),
        *("max_body_bytes", "max_batch_bytes", "max_items", "head_timeout", "body_timeout"),
        *("request_timeout", "idle_timeout", "log_level", "log_format"),
    )
) | {"token", *(f"queue.{name}" for name in ROOM), "limit.max_in_flight", RESPOND_AFTER}
"""Settings that SIGHUP changes."""


@dataclass(frozen=True, slots=True)
class Change:
    """The configuration to go on with, and how it differs from the one before."""

    config: SidecarConfig
    taken: tuple[str, ...]
    """What changed, in words, secrets masked."""
    refused: tuple[str, ...]
    """What did not, although it was asked for."""
    has_new_token: bool
    """The upstream's token is another one."""

    @property
    def has_new_intake(self) -> bool:
        """Something changed that a caller may notice."""
        return bool(self.taken)


def change(now: SidecarConfig, wanted: SidecarConfig) -> Change:
    """Take from a configuration what may be taken."""
    different = [one for one in every_setting() if now.value(one.path) != wanted.value(one.path)]
    taken = [one for one in different if one.path in CHANGEABLE]
    mark = f"{SERVE}."
    fields = {
        one.path.removeprefix(mark): wanted.value(one.path) for one in taken if one.path.startswith(mark)
    }
    has_new_token = any(one.path == "token" for one in taken)
    told = [_words(one, now, wanted) for one in taken]
    if now.tokens != wanted.tokens and not has_new_token and not {"tokens", "tokens_file"} & fields.keys():
        told.append(f"{SERVE}.tokens_file: the tokens in it")
    config = SidecarConfig(
        _dispatcher(now.dispatcher, wanted.dispatcher),
        replace(now.serve, **fields),
        wanted.tokens,
        {
            **now.origins,
            **{one.path: wanted.origins[one.path] for one in taken if one.path in wanted.origins},
        },
        replace(now.outbox, respond_after=wanted.outbox.respond_after),
    )
    refused = [_words(one, now, wanted) for one in different if one.path not in CHANGEABLE]
    if now.dispatcher.queues != wanted.dispatcher.queues:
        refused.append(QUEUES)
    return Change(config, tuple(told), tuple(refused), has_new_token)


def _dispatcher(now: Config, wanted: Config) -> Config:
    """The dispatcher's settings to go on with.

    Raises:
        ConfigError: What may change does not fit what may not.
    """
    room = {name: getattr(wanted.queue, name) for name in ROOM}
    return replace(
        now,
        token=wanted.token,
        queue=replace(now.queue, **room),
        limit=replace(now.limit, max_in_flight=wanted.limit.max_in_flight),
    )


def _words(one: Setting, now: SidecarConfig, wanted: SidecarConfig) -> str:
    if one.is_secret:
        return one.path
    before, after = (_shown(one, config.value(one.path)) for config in (now, wanted))
    return f"{one.path} from {before} to {after}"


def _shown(one: Setting, value: Any) -> str:
    return "none" if value is None else one.show(value)
