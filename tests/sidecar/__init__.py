"""Tests of the sidecar: the daemon, its intake, its proxy and its admin listener."""
