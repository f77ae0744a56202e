"""Datasets as Arrow tables: picked and widened without the bookkeeping that `datasets` does for its cache.

`Dataset.select` and `add_column` hash what they are given to name a cache file; with a list of a million values that
hash costs more than the column. Datasets in memory have no cache file, so here a random name does.

    with_columns(rows, {"score": pa.array([1, 4], pa.int32())})
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features


LARGEST = 1 << 30
"""Bytes of a table that are gathered at once; a string column of Arrow holds two gigabytes at most."""


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
    if table.nbytes <= LARGEST:
        return dataset_of(table.combine_chunks().take(wanted))  # in one piece it takes a sixth of the time
    step = max(1, int(len(table) * LARGEST / table.nbytes))
    if not len(wanted):
        return dataset_of(table.slice(0, 0))
    return dataset_of(pa.concat_tables(table.take(wanted[i : i + step]) for i in range(0, len(wanted), step)))


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
