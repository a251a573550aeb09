"""Names of the data sets, apart from the data sets themselves: a command line must not load numpy to be checked."""

from enum import StrEnum


class DataSet(StrEnum):
    """What `models.datasets.load` knows."""

    MOVIELENS_1M = "movielens-1m"
    MOVIELENS_100K = "movielens-100k"
    GENERATED = "generated"
    MARKETPLACE = "marketplace"
