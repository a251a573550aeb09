"""Long fuzz runs: `python -m tests.fuzz merge|stream`. Bounded ones are part of every test run."""
