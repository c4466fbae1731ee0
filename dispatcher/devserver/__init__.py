"""A local upstream that speaks the service's dialect, faults included.

It accepts and records; it never delivers to a destination. From the bottom up:

- `kinds`, `latency`, `faults`: one vocabulary of faults for this server, the simulation and the tests;
- `options`, `ledger`, `changes`, `intake`, `upstream`: the model; `now` is an argument, there is no I/O;
- `responder`: the model behind a fault plan, what a client *would* see;
- `queries`, `management`, `schedules`, `deadletters`, `events`, `keys`: everything else the service answers;
- `inspection`, `service`: what a test asks, and the routing;
- `journal`: what was accepted, on disk before the reply is;
- `app`, `server`: with `chaos` the only modules with sockets, a loop and a clock;
- `chaosplan`, `chaos`: a proxy that breaks connections, with plans like those of `faults`.

Nothing below `dispatcher.testing` and the commands imports this package.
"""
