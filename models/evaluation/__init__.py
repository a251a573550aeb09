"""How good lists are: protocols and reports over the exact ranking of the whole catalogue."""
