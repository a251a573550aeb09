"""Long fuzz runs: `python -m tests.fuzz filters|codecs|merge|stream`. Bounded ones are part of every test run."""
