"""Where candidates come from besides the tower."""
