"""Servers that adapters are held to: ours in every test run, real ones with `python -m tests.backends`."""
