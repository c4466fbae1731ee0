"""The outbox: acceptance that outlives the process, in front of a dispatcher. The core does not know of it.

`Outbox(store, dispatcher)` accepts; `store` says what a store is and what it promises.
"""

from dispatcher.outbox.memory import MemoryStore
from dispatcher.outbox.outbox import Outbox
from dispatcher.outbox.sqlite import SQLiteStore
from dispatcher.outbox.store import Found, Mark, Store, StoreStatus
from dispatcher.outbox.stored import Stored

__all__ = ["Found", "Mark", "MemoryStore", "Outbox", "SQLiteStore", "Store", "StoreStatus", "Stored"]
