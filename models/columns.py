"""What is visible of users and of their requests, in columns: what tensors are made of, what extractors are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class UserFeatures:
    """What is visible of B users at their requests' times, in columns."""

    item_hashes: NDArray[np.uint64]  # uint64[B, H], newest last, 0 = none
    codes: NDArray[np.int64]  # int64[B, H]
    timestamps_ms: NDArray[np.int64]  # int64[B, H], 0 = none
    counts: NDArray[np.int64]  # int64[B]
    newest_ms: NDArray[np.int64]  # int64[B], of the newest visible event with an item, 0 = none
    known: NDArray[np.bool_]  # bool[B]: something is stored of this user
    unreadable: NDArray[np.bool_]  # bool[B]: there is one, of a format that this version cannot read
    profile: dict[str, NDArray[Any]]  # profile_NAME -> array

    def rows(self, chosen: slice) -> "UserFeatures":
        """Some of the users."""
        columns = {name: column[chosen] for name, column in vars(self).items() if name != "profile"}
        return UserFeatures(**columns, profile={name: column[chosen] for name, column in self.profile.items()})


@dataclass(frozen=True)
class RequestColumns:
    """When each of B requests was made, and in which context; values of feature sources are in it."""

    as_of_ms: NDArray[np.int64]  # int64[B]
    contexts: Sequence[Mapping[str, Any]]

    def rows(self, chosen: slice) -> "RequestColumns":
        """Some of the requests."""
        return RequestColumns(self.as_of_ms[chosen], self.contexts[chosen])
