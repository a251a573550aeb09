"""Imported by the interpreter at its start: patches this worker as the environment says, or ends it when it cannot."""

import importlib
import os
import sys
import traceback

try:
    for module in os.environ["RECALL_CHAOS_PATCHES"].split(","):
        importlib.import_module(module)
except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(3)  # Python would go on without the patch
