"""`BlockingDispatcher`: a dispatcher for synchronous code, in a thread of its own, usable from any thread.

`front` has the calls, `streams` those for many messages; `worker` is the thread and its loop, `served` the
dispatcher inside it, `handover` the way between the threads, `endings` what happens when the process exits.
"""

from dispatcher.blocking.front import BlockingDispatcher
from dispatcher.blocking.handover import BlockingDelivery

__all__ = ["BlockingDelivery", "BlockingDispatcher"]
