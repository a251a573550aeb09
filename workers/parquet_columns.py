"""Named arrays as a Parquet file, written some thousand rows at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.errors import ExtraMissing

Column = NDArray[Any] | Sequence[str]


class ParquetColumns:
    """A file that is being written: each `write` is a row group. `with ParquetColumns(path) as file`.

    An array of two axes is a column of lists of fixed size. One whose second axis has no length is left out: Parquet
    has no such lists.
    """

    def __init__(self, path: Path) -> None:
        """Raises ExtraMissing without pyarrow."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise ExtraMissing("a data set of Parquet files", "parquet") from error
        self._arrow: Any = pyarrow
        self._parquet: Any = parquet
        self._path = path
        self._writer: Any = None
        self.rows = 0

    def __enter__(self) -> "ParquetColumns":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, columns: Mapping[str, Column]) -> None:
        """Rows, in parallel columns of the same names and types as before. Blocks. Raises OSError."""
        arrays = {name: self._array(values) for name, values in columns.items() if np.shape(values)[1:] != (0,)}
        table = self._arrow.table(arrays)
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)
        self.rows += table.num_rows

    def describe(self, about: Mapping[str, str]) -> None:
        """Add to what the file says of itself, once something was written."""
        self._writer.add_key_value_metadata(dict(about))

    def _array(self, values: Column) -> Any:
        if not isinstance(values, np.ndarray):
            return self._arrow.array(values, type=self._arrow.string())
        if values.ndim == 1:
            return self._arrow.array(values)
        flat = self._arrow.array(np.ascontiguousarray(values).reshape(-1))
        return self._arrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
