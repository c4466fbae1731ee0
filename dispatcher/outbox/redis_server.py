"""What a Redis is set up to promise: whether it forgets keys, and whether it keeps what it acknowledged.

A server that evicts any key would lose messages without a word: such a one is refused. One that evicts only
keys with an expiry may end leases early; one without a log of commands loses what it has acknowledged when
it dies: both are told once. Where the server does not say, nothing is assumed. Used by `redis` as it opens.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from dispatcher.errors import OutboxError
from dispatcher.outbox.redis_link import LinkLostError

if TYPE_CHECKING:
    from dispatcher.outbox.redis_link import Link

logger: Final = logging.getLogger("dispatcher.outbox")


async def look_at_server(link: Link) -> None:
    """Refuse or warn.

    Raises:
        OutboxError: It evicts keys of any kind, or cannot be reached.
    """
    try:
        said = _fields(await link.ask("INFO"))
    except LinkLostError:
        raise
    except OutboxError as error:
        logger.info("outbox: redis does not tell how it is set up: %s", error)
        return
    policy = said.get("maxmemory_policy", "noeviction")
    if policy.startswith("allkeys-"):
        raise OutboxError(
            f"redis: maxmemory-policy is {policy}: it would forget messages when its memory is full; "
            "an outbox needs noeviction"
        )
    if policy != "noeviction":
        logger.warning(
            "outbox: redis has maxmemory-policy %s: it may end leases when its memory is full, and two "
            "members send the same; wanted is noeviction",
            policy,
        )
    if said.get("aof_enabled") == "0":
        logger.warning(
            "outbox: redis keeps no log of commands (appendonly no): what is acknowledged is lost when it "
            "dies"
        )


def _fields(text: bytes) -> dict[str, str]:
    """The lines of INFO."""
    lines = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value.strip() for name, colon, value in lines if colon}
