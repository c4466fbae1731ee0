"""Attacks on a real `dispatcher serve` over raw sockets: what is tried, what has to come of it.

`python -m tests.sidecar.attacks` tries all of them and prints a line for each; it exits 1 if the sidecar let
one through, or refused what it should not. The tables here are shared with the tests of single modules.
"""
