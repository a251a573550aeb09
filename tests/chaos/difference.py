"""What the model and the system do not agree on."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["lost", "double_effects", "unanswered", "wrong_state"]
KINDS: tuple[Kind, ...] = ("lost", "double_effects", "unanswered", "wrong_state")


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it must be."""

    kind: Kind
    line: str
    of_run: bool = False  # it did not come to its end, or a worker ended: whatever else differs may follow from that
