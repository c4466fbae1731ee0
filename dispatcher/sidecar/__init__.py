"""The sidecar: a daemon beside an application whose intake speaks the upstream's own dialect.

Single publishes come in one by one and leave as full batches of one `Dispatcher`; what is no publish goes
through a proxy. `daemon` puts it together, and the command `serve` runs it.
"""
