"""What an adapter is opened with."""

from dataclasses import dataclass

from workers.feature_sources import FeatureSourceSettings
from workers.settings import Settings


@dataclass(frozen=True, slots=True)
class Given:
    """`dependency`: the name that the source's errors carry; `source`: its settings; `settings`: the worker's."""

    dependency: str
    source: FeatureSourceSettings
    settings: Settings
