"""Towers trained with PyTorch (extra `train`): samples, towers, training, export."""
