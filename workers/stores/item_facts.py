"""placeholder until the other branch lands"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ItemFact:
    item_id: str
    attributes: dict[str, Any]
