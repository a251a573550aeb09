"""What is patched into every worker at its start, so that parts of it misbehave when they are told to.

As mutants are: see tests/chaos/mutants. These break no promise of the product, but what the product depends on.
"""
