"""Model runtimes behind the port Tower."""
