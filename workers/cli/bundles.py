"""Which bundle a command means."""

from pathlib import Path

from workers.errors import ConfigurationError
from workers.settings import Settings


def bundle_folder(bundle: str, settings: Settings) -> Path:
    """A bundle's folder, or that of a version among those of the data folder. It may not be there."""
    return Path(bundle) if Path(bundle).is_dir() else settings.data_dir / "bundles" / bundle


def existing_bundle(bundle: str, settings: Settings) -> Path:
    """The same, which has a manifest. Raises ConfigurationError."""
    from models.bundle import MANIFEST

    path = bundle_folder(bundle, settings)
    if not (path / MANIFEST).is_file():
        folder = settings.data_dir / "bundles"
        raise ConfigurationError(
            f"{bundle} is not a bundle: neither a folder with {MANIFEST} nor a version in {folder}"
        )
    return path
