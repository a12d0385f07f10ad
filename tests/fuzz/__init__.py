"""Hostile input for every reader; `python -m tests.fuzz --help`, or `nox -s fuzz`."""
