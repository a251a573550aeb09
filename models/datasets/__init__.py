"""Data sets as our own events. `load(name)` knows movielens-1m, movielens-100k, generated, marketplace."""

from collections.abc import Callable

from models.datasets.dataset import Dataset, DatasetError
from models.datasets.generated import generate
from models.datasets.marketplace import generate_marketplace
from models.datasets.movielens import MOVIELENS_1M, MOVIELENS_100K, load_movielens

__all__ = ["NAMES", "Dataset", "DatasetError", "load"]

NAMES = ("movielens-1m", "movielens-100k", "generated", "marketplace")


def load(name: str, say: Callable[[str], None]) -> Dataset:
    """Read or generate a data set; `say` is told before anything is downloaded. Raises DatasetError."""
    if name == "movielens-1m":
        return load_movielens(MOVIELENS_1M, say)
    if name == "movielens-100k":
        return load_movielens(MOVIELENS_100K, say)
    if name == "generated":
        return generate()
    if name == "marketplace":
        return generate_marketplace()
    raise DatasetError(f"no data set {name!r}; there are {', '.join(NAMES)}")
