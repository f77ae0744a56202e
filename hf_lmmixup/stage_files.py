r"""Files between single stages: rows in, rows out, and the scored rows that a datastore is built from.

A stage's output is a Parquet or JSON Lines file that holds every column the input had. One row that was rated before,
as `read_scored` takes it::

    {"prompt": "why sky blue", "completion": "scattering", "score": 1}      or
    {"text": "Q: why sky blue\nA: scattering", "score": 1, "task_type": "qa"}
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from hf_lmmixup.faithfulness import COLUMNS
from hf_lmmixup.inputs import check_place, parquet_file, raw_rows
from hf_lmmixup.jsonl import SUFFIXES, Reject, read_json
from hf_lmmixup.loading import DUPLICATE, load_rows
from hf_lmmixup.records import CLUSTERED, MERGED, SCORES, Outcome, TaskType, pair_text, row_id
from hf_lmmixup.tables import as_field, dataset_of, table_of, with_columns


WRITTEN = (".parquet", ".jsonl")
RECORD = ("id", "prompt", "completion")

STAGED = ("score", "cluster_id", "confidence")
"""Columns of which every stage, and `lmmixup confidence --rows`, writes one."""

TYPES = {
    field.name: field.type
    for features in (CLUSTERED, MERGED, COLUMNS, {"raw_score": Value("int32"), "score_confidence": Value("float32")})
    for field in Features(features).arrow_schema
}
"""What stages write, which JSON does not tell: whole numbers beside a null become decimals there."""

BATCH = 10_000


def read_rows(source: str | Path, *, limit: int | None = None) -> Outcome:
    """Read the rows that a stage works on.

    Args:
        source: Rows that a stage or a run wrote, of which every column is kept, or raw rows of any form: a file, a
            folder or a Hub id that `loading.load_rows` reads. Where an id stands twice, as in files from elsewhere,
            rows get the ids of their texts.
        limit: Read at most this many rows.

    Returns:
        The rows, and place -> reason of what could not be read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no usable row.
    """
    path = Path(source)
    if path.suffix == ".parquet" and path.is_file():
        with parquet_file(path) as file:
            schema = pa.schema([field.with_type(_plain(field.type)) for field in file.schema_arrow])
            if all(name in schema.names and pa.types.is_string(schema.field(name).type) for name in RECORD):
                table = file.read().cast(schema).slice(0, limit)
                if not any(table.column(name).null_count for name in RECORD):
                    return _with_own_ids(table, (f"{path.name}:{row}" for row in count(1)))
    written = _stage_rows(source, limit) if path.suffix != ".parquet" else None
    return written or load_rows(source, limit=limit)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that a stage writes, where pandas or Polars choose one for longer texts, lists and categories."""
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind


def _stage_rows(source: str | Path, limit: int | None) -> Outcome | None:
    """The rows that a stage wrote, with their columns; `None` if one of them comes from elsewhere."""
    dropped: dict[str, str] = {}
    tables: list[pa.Table] = []
    lines = islice(raw_rows(source), limit)
    try:
        while batch := list(islice(lines, BATCH)):
            dropped |= {place: row.reason for place, row in batch if isinstance(row, Reject)}
            rows = [row for _, row in batch if not isinstance(row, Reject)]
            if not all(map(_is_staged, rows)):
                return None
            tables += [_table(rows)] if rows else []
        table = pa.concat_tables(tables, promote_options="permissive") if tables else None
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):  # values that no stage writes
        return None
    if table is None:
        return None
    places = (place for place, row in islice(raw_rows(source), limit) if not isinstance(row, Reject))
    own = _with_own_ids(table, places)
    return Outcome(own.dataset, dropped | own.dropped)


def _is_staged(row: dict[str, Any]) -> bool:
    return all(isinstance(row.get(name), str) for name in RECORD) and any(name in row for name in STAGED)


def _with_own_ids(table: pa.Table, places: Iterable[str]) -> Outcome:
    """The rows; where an id stands twice, all under the ids of their texts, and of equal ones the first, as loaded."""
    if pc.count_distinct(table["id"]).as_py() == len(table):
        return Outcome(dataset_of(table))
    pairs = zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True)
    first: dict[str, int] = {}
    dropped: dict[str, str] = {}
    for row, (pair, place) in enumerate(zip(pairs, places, strict=False)):
        if first.setdefault(row_id(*pair), row) != row:
            dropped[place] = DUPLICATE
    kept, ids = table.take([*first.values()]), pa.array([*first], pa.string())
    return Outcome(dataset_of(kept.set_column(kept.column_names.index("id"), "id", ids)), dropped)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    columns = {name: pa.array([row.get(name) for row in rows]) for name in dict.fromkeys(chain.from_iterable(rows))}
    return pa.table({name: column.cast(TYPES.get(name, column.type)) for name, column in columns.items()})


def with_clusters(rows: Dataset, source: str) -> Dataset:
    """The rows with whole numbers as `cluster_id`; pandas makes decimals of those beside a null.

    Raises:
        ValueError: If there is no such column, or something else in it.
    """
    field = CLUSTERED.arrow_schema.field("cluster_id")
    try:
        return with_columns(rows, {field.name: as_field(table_of(rows)[field.name], field)})
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{source} has no column cluster_id with whole numbers. Make it with lmmixup cluster."
        ) from error


def check_output(path: Path, *inputs: str | Path) -> None:
    """Refuse an output that `write_rows` cannot write, before anything is computed, and make its folder.

    Args:
        path: The output.
        inputs: What is read. The output is none of them, for it would not hold all their rows and columns.

    Raises:
        ValueError: If the suffix is unknown, or there is a folder of this name, or it is or lies in an input.
        OSError: If its folder cannot be made or written to.
    """
    if path.suffix not in WRITTEN:
        raise ValueError(f"{path} ends in {path.suffix!r}. Accepted outputs: {', '.join(WRITTEN)}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Name a file to write.")
    if path.exists() and any(Path(source).exists() and path.samefile(source) for source in inputs):
        raise ValueError(f"{path} is the input, whose rows would be lost. Name another file to write.")
    check_place(path, *inputs)
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Make a folder in which something is going to be written.

    Raises:
        OSError: If it cannot be made, or nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"Nothing can be written in {folder.resolve()}. Name another folder.")


def write_rows(dataset: Dataset, path: Path) -> None:
    """Write rows to a `.parquet` or `.jsonl` file; whoever reads meanwhile sees the old file or the whole new one."""
    check_output(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.suffix == ".parquet":
            dataset.to_parquet(str(partial))
        else:
            dataset.to_json(str(partial), force_ascii=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass
class ScoredRows:
    """Texts with their scores, as `datastore.build` takes them.

    Attributes:
        texts: The texts with their labels.
        scores: Score of each, 0 to 5.
        task_types: Task type of each.
        dropped: Reason -> rows left out for it.
    """

    texts: list[str] = field(default_factory=list)
    scores: list[int] = field(default_factory=list)
    task_types: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def read_scored(source: str | Path, task_type: TaskType | str = TaskType.QA) -> ScoredRows:
    """Read rows that carry a score.

    Args:
        source: A `.parquet`, `.jsonl` or `.json` file whose rows have `score` and either `text` or `prompt` and
            `completion`; `task_type` is optional.
        task_type: Task type of rows that do not name one.

    Returns:
        The usable rows in their order; a row without a score, as an abstaining rater leaves it, is counted and left
        out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has another form, a row names an unknown task type, or no row can be used.
    """
    path, found = Path(source), ScoredRows()
    for row in _rows(path):
        reason = _unusable(row)
        if reason is not None:
            found.dropped[reason] += 1
            continue
        pair = isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)
        found.texts.append(pair_text(row["prompt"], row["completion"]) if pair else row["text"])
        found.scores.append(int(row["score"]))
        found.task_types.append(TaskType(row.get("task_type") or task_type).value)
    if not found.texts:
        raise ValueError(f"{path} holds no scored row: {dict(found.dropped) or 'it is empty'}. Rate it first.")
    return found


def _unusable(row: Any) -> str | None:
    """Why a row cannot join a datastore, in words that do not depend on the row."""
    if isinstance(row, Reject):
        return row.reason
    pair = isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)
    if not pair and not isinstance(row.get("text"), str):
        return "neither `text` nor `prompt` and `completion`"
    score = row.get("score")
    if score is None:
        return "no score"
    whole = isinstance(score, (int, float)) and not isinstance(score, bool) and score in SCORES
    return None if whole else "the score is no whole number from 0 to 5"


def _rows(path: Path) -> Iterable[Any]:
    if path.suffix in SUFFIXES:
        return (row for _, row in read_json(path))
    if path.suffix != ".parquet":
        raise ValueError(f"{path} ends in {path.suffix!r}. Accepted files: .parquet, .jsonl, .json.")
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}.")
    return _parquet_rows(path)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    wanted = ("text", "prompt", "completion", "score", "task_type")
    with parquet_file(path) as file:
        columns = [name for name in wanted if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=10_000, columns=columns):
            yield from batch.to_pylist()
