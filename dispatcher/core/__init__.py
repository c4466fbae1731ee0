"""The core decides what leaves, when, and what each answer means.

Its law: no clock, no socket, no task, no randomness. `now` (monotonic seconds) and `rng` are arguments,
so a thousand seeds of a whole day run in seconds and a failing one can be replayed. A ruff rule on this
path and a test hold the law.

The call contract (`engine.Engine`)
    Inputs, each with `now` where it matters: `offer(entry)`, `complete(batch, reply_or_failure)`,
    `withdraw(entry) → bool`, `flush() → epoch`, `resume(queue) → bool`, `unhalt()`, `age(seconds)`,
    `drain(deadline)`.
    One output: `poll(now) → Step(start, settled, wake_at)`, asked once after any number of inputs, and
    no later than `wake_at`. Whatever settles an entry leaves through `settled`, exactly once.

Invariants (asserted by `Engine.check` and by the watch of the simulation)
    1. admitted = settled + held, and held = waiting + in flight + backing off + isolated;
       the same in bytes; nothing is held after a drain.
    2. Room holds exactly what the engine holds (and what was granted and not yet offered).
    3. Batches in flight ≤ limit, outside the moment in which a limit shrinks.
    4. An ordered lane has at most one unresolved batch; what of it is unresolved is counted in the lane. A
       strict lane has one message in flight at most; nothing of a stopped lane leaves.
    5. An entry settles exactly once.
    6. A closed or halted gate starts nothing but one probe at a time, and that one is in flight.
    7. If anything is held and nothing is in flight, `wake_at` is finite.
"""
