"""Compares the item topic, the item table and the collection of a view, and mends what differs."""
