"""`recall down`: end the local stack and its workers."""

from typing import Annotated

import typer

from workers.local.stack import stop_running, wipe
from workers.settings import load_settings


def down(
    wipe_data: Annotated[bool, typer.Option("--wipe", help="Delete the stack's data too (bundles stay).")] = False,
) -> None:
    """Stop the local stack and the workers; data stay unless --wipe is given."""
    settings = load_settings()
    if not stop_running(settings.data_dir, print):
        print("nothing runs here")
    if wipe_data:
        deleted = wipe(settings.data_dir)
        print(f"deleted the data of {', '.join(deleted)}" if deleted else "there was no data to delete")
