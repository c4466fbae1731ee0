"""The outbox: acceptance that outlives the process, in front of a dispatcher. The core does not know of it.

`store` says what a store is and what it promises.
"""
