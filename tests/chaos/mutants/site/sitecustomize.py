"""Imported by the interpreter at its start: breaks this worker as the environment says, or ends it when it cannot."""

import importlib
import os
import sys
import traceback

try:
    importlib.import_module(f"tests.chaos.mutants.{os.environ['RECALL_CHAOS_MUTANT']}")
except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(3)  # Python would go on without the mutant
