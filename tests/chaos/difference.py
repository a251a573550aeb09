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
