"""What a new configuration may change in a running daemon, and what it may not. Pure; used by `daemon`.

The token, the callers' tokens, and the bounds of the intake can change between two requests. Everything else
is built into sockets, the dispatcher's room or its lanes: for those the process has to be started again,
which is said for each of them by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from dispatcher.sidecar.settings import SidecarConfig, every_setting
from dispatcher.sources import QUEUES, SERVE

if TYPE_CHECKING:
    from dispatcher.settings import Setting

CHANGEABLE: Final = frozenset(
    f"{SERVE}.{name}"
    for name in (
        *("tokens", "tokens_file", "proxy", "patience", "max_connections", "max_head_bytes"),
        *("max_body_bytes", "max_batch_bytes", "max_items", "head_timeout", "body_timeout"),
        *("request_timeout", "idle_timeout", "log_level", "log_format"),
    )
) | {"token"}
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
    fields = {
        one.path.removeprefix(f"{SERVE}."): wanted.value(one.path) for one in taken if one.path != "token"
    }
    has_new_token = any(one.path == "token" for one in taken)
    token = wanted.dispatcher.token
    told = [_words(one, now, wanted) for one in taken]
    if now.tokens != wanted.tokens and not has_new_token and not {"tokens", "tokens_file"} & fields.keys():
        told.append(f"{SERVE}.tokens_file: the tokens in it")
    config = SidecarConfig(
        replace(now.dispatcher, token=token) if has_new_token else now.dispatcher,
        replace(now.serve, **fields),
        wanted.tokens,
        {
            **now.origins,
            **{one.path: wanted.origins[one.path] for one in taken if one.path in wanted.origins},
        },
    )
    refused = [_words(one, now, wanted) for one in different if one.path not in CHANGEABLE]
    if now.dispatcher.queues != wanted.dispatcher.queues:
        refused.append(QUEUES)
    return Change(config, tuple(told), tuple(refused), has_new_token)


def _words(one: Setting, now: SidecarConfig, wanted: SidecarConfig) -> str:
    if one.is_secret:
        return one.path
    before, after = (_shown(one, config.value(one.path)) for config in (now, wanted))
    return f"{one.path} from {before} to {after}"


def _shown(one: Setting, value: Any) -> str:
    return "none" if value is None else one.show(value)
