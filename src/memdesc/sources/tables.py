"""Parquet tables as numpy columns: the only module that talks to arro3.

Writing streams batches into a file object, reading streams them out of one.  Both keep
errors in order: what the batches or the file raise comes out as it went in, and what the
decoder raises becomes one CaptureError.  Tables from anywhere are read through
`memdesc.sources.decoder`: some damage makes arro3 abort its whole process.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import IO, Any, Protocol, TypeAlias, cast

import numpy as np
from arro3.core import Array, DataType, Field, RecordBatch, RecordBatchReader, Schema
from arro3.io import read_parquet, write_parquet
from numpy.typing import NDArray

from memdesc.errors import CaptureError
from memdesc.sources.capture_format import STRING
from memdesc.sources.signals import held

__all__ = ["BATCH_ROWS", "Batch", "ByteSink", "Column", "read_batches", "write_table"]

Column: TypeAlias = NDArray[Any] | Sequence[str]
Batch: TypeAlias = Mapping[str, Column]
"""Column name -> values; all of the same length."""

BATCH_ROWS = 1 << 16
"""Rows per batch when reading: a few MB, whatever the size of the table."""
_ROW_GROUP_ROWS = 1 << 18
"""Small enough that an engine reads the groups of one large machine in parallel."""

_DELTA = frozenset(["pfn_start", "page", "vma", "process", "start", "end", "pid"])
"""Columns that mostly rise: stored as differences."""
_PLAIN = frozenset(["nr_pages"])
"""Columns with too many values for a dictionary to pay: zstd alone is smaller."""
_COMPRESSION = "zstd(1)"
"""Level 3 is 2 % smaller and takes a quarter longer."""


class ByteSink(Protocol):
    """Where a table's bytes go. `write` must not raise: it keeps the error in `error`.

    The Parquet writer panics when its file fails, so a failure waits until it returns.
    """

    error: BaseException | None

    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...


def write_table(sink: ByteSink, columns: Mapping[str, str], batches: Iterator[Batch]) -> int:
    """Write `batches` of `columns` (name -> type) to `sink`; return the rows written.

    Holds one row group at a time. Raises what `batches` raised, or `sink.error`.
    """
    fields = [Field(name, _arrow_type(kind), nullable=False) for name, kind in columns.items()]
    schema = Schema(fields)
    failed: list[BaseException] = []
    rows = 0

    def stream() -> Generator[RecordBatch]:
        nonlocal rows
        try:
            for batch in batches:
                if sink.error is not None:
                    return
                arrays = [_array(batch[name], kind) for name, kind in columns.items()]
                rows += len(arrays[0])
                yield RecordBatch.from_arrays(arrays, schema=schema)
        except GeneratorExit:
            raise
        except BaseException as error:  # also KeyboardInterrupt: arro3 would lose its type
            failed.append(error)

    # Closed here: an interrupt while arro3 lets go of it would be printed, and lost; as is one
    # while it looks at what it is given.
    with closing(stream()) as source, _decoder_errors("cannot write the table"):
        with held():
            reader = RecordBatchReader.from_batches(schema, cast("Sequence[RecordBatch]", source))
        write_parquet(
            reader,
            cast("IO[bytes]", sink),
            compression=_COMPRESSION,
            column_dictionary_enabled={
                name: kind != STRING and name not in _DELTA | _PLAIN
                for name, kind in columns.items()
            },
            column_encoding={name: "delta_binary_packed" for name in columns if name in _DELTA},
            max_row_group_size=_ROW_GROUP_ROWS,
            data_page_row_count_limit=_ROW_GROUP_ROWS,
            write_batch_size=1 << 14,
            skip_arrow_metadata=True,
        )
    for error in (*failed, sink.error):
        if error is not None:
            raise error
    return rows


def read_batches(file: IO[bytes], columns: Mapping[str, str]) -> Iterator[dict[str, Column]]:
    """Yield the table open at `file` in batches of at most `BATCH_ROWS` rows.

    Numbers come as numpy arrays of the declared dtype, texts as lists of str.
    Raises CaptureError where the file is damaged or has other columns or nulls.
    """
    with _decoder_errors("its data is damaged"):
        reader = read_parquet(file, batch_size=BATCH_ROWS)
        found = {field.name: str(field.type) for field in _fields(reader.schema)}
    expected = {name: str(_arrow_type(kind)) for name, kind in columns.items()}
    if found != expected:
        raise CaptureError(f"its columns are {found!r:.300}, expected {expected!r:.300}")
    while True:
        with _decoder_errors("its data is damaged"):
            batch = next(reader, None)
            if batch is None:
                return
            values: dict[str, Column] = {}
            for name, kind in columns.items():
                array = batch[name]
                if array.null_count:
                    raise CaptureError(f"column {name} has nulls")
                values[name] = (
                    [str(text) for text in array.to_pylist()]
                    if kind == STRING
                    else array.to_numpy()
                )
        yield values


# --- helpers -----------------------------------------------------------------------------

_ARROW_TYPES: dict[str, DataType] = {
    **{
        f"{sign}int{bits}": getattr(DataType, f"{sign}int{bits}")()
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    STRING: DataType.utf8(),
}


def _arrow_type(kind: str) -> DataType:
    return _ARROW_TYPES[kind]


def _fields(schema: Schema) -> list[Field]:
    return [schema.field(index) for index in range(len(schema))]


def _array(values: Column, kind: str) -> Array:
    if kind == STRING:
        return Array(cast("Sequence[str]", values), type=DataType.utf8())
    return Array.from_numpy(np.ascontiguousarray(values, dtype=kind))


@contextmanager
def _decoder_errors(what: str) -> Iterator[None]:
    """Turn every failure of the Rust code, a panic included, into a CaptureError."""
    try:
        yield
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"{what}: {error}"[:300]) from error
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise CaptureError(f"{what}: {error}"[:300]) from None
