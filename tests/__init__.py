"""Tests; a package, so that `python -m tests.parity` cannot meet another `tests`."""
