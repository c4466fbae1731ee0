"""The outbox: acceptance that outlives the process, in front of a dispatcher. The core does not know of it.

`Outbox(store, dispatcher)` accepts; `store` says what a store is and what it promises. `RedisStore` needs the
extra `redis`; it is loaded when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from dispatcher.outbox.memory import MemoryStore
from dispatcher.outbox.outbox import Outbox
from dispatcher.outbox.sqlite import SQLiteStore
from dispatcher.outbox.store import Found, Mark, Store, StoreStatus
from dispatcher.outbox.stored import Stored

if TYPE_CHECKING:
    from dispatcher.outbox.redis import RedisStore

__all__ = [
    "Found",
    "Mark",
    "MemoryStore",
    "Outbox",
    "RedisStore",
    "SQLiteStore",
    "Store",
    "StoreStatus",
    "Stored",
]


def __getattr__(name: str) -> Any:
    if name == "RedisStore":
        from dispatcher.outbox.redis import RedisStore

        return RedisStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
