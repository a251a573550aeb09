"""`recall model activate`: makes a bundle that is there the active one: a new one or, to go back, an old one."""

from typing import Annotated

import orjson
import typer

from workers.cli import model
from workers.cli.bundles import existing_bundle
from workers.errors import ConfigurationError
from workers.settings import load_settings


def activate(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or its version among those of the data folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a bundle the active one; its files are checked."""
    from models.bundle import BundleError, load_bundle, require_time

    settings = load_settings()
    try:
        found = load_bundle(existing_bundle(bundle, settings))
        require_time(found)
    except BundleError as error:
        raise ConfigurationError(str(error)) from error
    result = {"version": found.version, "path": str(found.path.absolute())}
    model.activate(settings, result)
    if as_json:
        print(orjson.dumps(result).decode())
    else:
        print(f"version: {found.version}\npath: {result['path']}\n{model.ACTIVE}")
