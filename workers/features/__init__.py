"""Feature sources: where values come from that a request's own context does not carry, one adapter a file."""
