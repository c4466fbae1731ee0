"""An open-loop load generator: what leaves when, what it met, and what can be seen of it.

Every message has an *intended* start, given by the schedule alone; each latency is measured from it. Where
the generator, the room or the target falls behind, the wait counts: nothing is left out because nobody could
send it. `schedule`, `histogram`, `messages`, `find` and the drawing are pure; `generator` and the targets run
them in the loop. Nothing below imports this; `dispatcher bench` is its command.
"""
