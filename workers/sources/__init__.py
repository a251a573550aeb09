"""Candidate sources: where the items of a list come from."""
