"""Datasets as Arrow tables: picked and widened without the bookkeeping that `datasets` does for its cache.

`Dataset.select` and `add_column` hash what they are given to name a cache file; with a list of a million values that
hash costs more than the column. Datasets in memory have no cache file, so here a random name does.

    with_columns(rows, {"score": pa.array([1, 4], pa.int32())})
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features

from hf_lmmixup.mapped_files import let_go_of_pages


GATHERED = 16_384
"""Rows of another order that are gathered at once. Arrow joins all chunks of a table before it takes rows from it,
which copies the table, and a string column in one piece holds two gigabytes at most."""


def dataset_of(table: pa.Table) -> Dataset:
    """A table as a dataset in memory."""
    return Dataset(table, fingerprint=uuid4().hex[:16])


def table_of(dataset: Dataset) -> pa.Table:
    """The rows of a dataset, in their order, as a table."""
    table: pa.Table = dataset.with_format("arrow")[:]
    return table


def rows_at(dataset: Dataset, places: Sequence[int] | np.ndarray) -> Dataset:
    """Some rows of a dataset, in the given order.

    Args:
        dataset: The rows.
        places: Row numbers (m,).
    """
    table, wanted = table_of(dataset), np.asarray(places, np.int64)
    if (np.diff(wanted, prepend=-1) > 0).all():  # in their order, which takes a fraction of the time
        is_wanted = np.zeros(len(table), bool)
        is_wanted[wanted] = True
        return dataset_of(table if is_wanted.all() else table.filter(pa.array(is_wanted)))
    return dataset_of(pa.concat_tables(gathered(table, wanted, GATHERED)))


def gathered(table: pa.Table, places: np.ndarray, size: int) -> Iterator[pa.Table]:
    """Some rows of a table, in the given order, `size` at a time; no others are in memory.

    Args:
        table: The rows.
        places: Row numbers (m,).
        size: Rows of a part.
    """
    chunks = table.to_batches()
    starts = np.cumsum([0, *map(len, chunks)])
    for begin in range(0, len(places), size):
        wanted = places[begin : begin + size].astype(np.int64)
        chunk = np.searchsorted(starts, wanted, side="right") - 1
        order = np.argsort(chunk, kind="stable")
        bounds = np.searchsorted(chunk[order], np.arange(len(chunks) + 1))
        parts = [
            chunks[i].take(pa.array(wanted[order[bounds[i] : bounds[i + 1]]] - starts[i]))
            for i in np.flatnonzero(np.diff(bounds)).tolist()
        ]
        yield pa.Table.from_batches(parts).combine_chunks().take(np.argsort(order))
        let_go_of_pages()


def text_pairs(dataset: Dataset, size: int, first: int = 0) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Prompts and completions of a dataset, `size` rows at a time, each block with the number of its first row."""
    table = table_of(dataset.select_columns(["prompt", "completion"]))
    for start in range(first, len(table), size):
        columns = (column.to_pylist() for column in table.slice(start, size).columns)
        yield start, list(zip(*columns, strict=True))
        let_go_of_pages()


def places_of(ids: pa.Array | pa.ChunkedArray, among: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Where ids stand among others (n,), int64; -1 where they do not."""
    places: np.ndarray = pc.index_in(ids, among).fill_null(-1).to_numpy().astype(np.int64)
    return places


def check_ids(ids: pa.Array | pa.ChunkedArray, source: str = "") -> None:
    """Refuse rows of which two have one id: reasons and books go by it.

    Args:
        ids: The ids (n,).
        source: Where the rows come from, for the message.

    Raises:
        ValueError: If an id repeats.
    """
    repeated = len(ids) - pc.count_distinct(ids).as_py()
    if repeated:
        where = f"{source}: " if source else ""
        raise ValueError(f"{where}{repeated} of {len(ids)} rows repeat an id. Keep one of each.")


def without(dataset: Dataset, ids: Collection[str]) -> Dataset:
    """The rows whose id is not among some."""
    gone = pc.is_in(table_of(dataset)["id"].cast(pa.string()), pa.array(list(ids), pa.string()))
    return rows_at(dataset, np.flatnonzero(~gone.to_numpy()))


def best_first(dataset: Dataset, *columns: str) -> np.ndarray:
    """Row numbers (n,) by some columns, highest first and missing values last, then by id."""
    keys = [*((name, "descending") for name in columns), ("id", "ascending")]
    order: np.ndarray = pc.sort_indices(table_of(dataset).select([name for name, _ in keys]), keys).to_numpy()
    return order


def with_columns(dataset: Dataset, columns: Mapping[str, Any], features: Features | None = None) -> Dataset:
    """A dataset with more columns, or other ones under the same names.

    Args:
        dataset: The rows.
        columns: Name -> Arrow array, or values if `features` says their type.
        features: Types by name.
    """
    table = table_of(dataset).replace_schema_metadata(None)
    for name, values in columns.items():
        if not isinstance(values, pa.Array | pa.ChunkedArray):
            values = pa.array(values, None if features is None else features.arrow_schema.field(name).type)
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, values)
    return dataset_of(table)


def as_field(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    """A column as the type of a field; not a number is null.

    Raises:
        ValueError: If a value is none of that type.
    """
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"The column {field.name} holds {column.type}, not {field.type}: {error}") from error
