"""Comparisons and measurements; each module is a command."""
