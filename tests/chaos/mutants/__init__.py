"""Workers with one promise broken, to prove that the harness can fail. Each is a module that patches at import.

`site/sitecustomize.py` is imported by Python itself, before a worker's first line, when its folder stands in
PYTHONPATH; it imports the modules that the environment names. Product code knows nothing of it.
"""

from pathlib import Path

VARIABLE = "RECALL_CHAOS_PATCHES"


def site_folder() -> Path:
    """What comes first in the PYTHONPATH of a worker that is patched."""
    return Path(__file__).with_name("site")
