"""Which bundle a command means."""

from pathlib import Path

from workers.settings import Settings


def bundle_folder(bundle: str, settings: Settings) -> Path:
    """A bundle's folder, or that of a version among those of the data folder. It may not be there."""
    return Path(bundle) if Path(bundle).is_dir() else settings.data_dir / "bundles" / bundle
