"""The fault harness: `python -m tests.chaos`. docs/failures.md tells what each fault does to a caller."""
