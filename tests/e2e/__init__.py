"""End to end: workers and commands as processes. A package, so that fixtures can last as long as it does."""
