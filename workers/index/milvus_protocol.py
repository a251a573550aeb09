"""The messages of Milvus' protocol, as pymilvus ships them, without the rest of pymilvus.

`import pymilvus.grpc_gen` runs `pymilvus/__init__.py` first, which loads pandas and an ORM that nothing here uses: .7 s
and 90 MB in every process (docs/adr/0018-milvus-protocol.md).
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc, schema_pb2
else:

    def _load(name: str) -> None:
        """Import the package of the generated modules under a name of our own; they import one another relatively."""
        pymilvus: ModuleSpec | None = importlib.util.find_spec("pymilvus")  # found, not run
        if pymilvus is None or pymilvus.submodule_search_locations is None:
            raise ModuleNotFoundError("No module named 'pymilvus'", name="pymilvus")
        folder = Path(pymilvus.submodule_search_locations[0]) / "grpc_gen"
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        package = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)

    _load("recall_milvus_protocol")
    from recall_milvus_protocol import common_pb2, milvus_pb2, milvus_pb2_grpc, schema_pb2

__all__ = ["common_pb2", "milvus_pb2", "milvus_pb2_grpc", "schema_pb2"]
