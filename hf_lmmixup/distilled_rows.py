"""What every way to distil shares: the rows of each cluster on the way in, rows with their lineage on the way out.

One row of the result::

    {"id": "9c1f...", "prompt": "What causes tides?", "completion": "Mostly the Moon's pull on the oceans.",
     "reasoning": "Both ask about tides; ...", "cluster_id": 7, "sources": ["03ab...", "7f20..."],
     "source_scores": [1, 2], "distiller": "quickstart/distiller", "prompt_hash": "b81c..."}
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from hf_lmmixup.prompts import labels_of
from hf_lmmixup.records import DISTILLED, Distillation, Outcome, TaskType, pair_text, row_id
from hf_lmmixup.tables import as_field, dataset_of, gathered, places_of, table_of, with_columns


BATCH = 10_000

WRITTEN_SCHEMA = pa.schema(
    DISTILLED.arrow_schema.field(name)
    for name in ("id", "prompt", "completion", "reasoning", "cluster_id", "prompt_hash")
)
"""What is known of a distilled row as soon as it is written; more sources may come."""

MEMBERS_SCHEMA = pa.schema([("number", pa.int64()), ("id", pa.string()), ("score", pa.int32())])
"""A source row and the number of the distilled row that it went into."""

NO_CLUSTER = "distill: row has no cluster"

COMPLETIONS = Features(
    {
        "cluster_id": Value("int64"),
        "prompt_hash": Value("string"),
        "sources": List(Value("string")),
        "prompt_bytes": Value("int64"),
        "attempt": Value("int64"),
        "completion": Value("string"),
        "reason": Value("string"),
    }
)
"""One try: `attempt` counts from 1, `completion` is null if there was none, `reason` if it was taken."""


def completions_of(records: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Tries as a table with the columns of `COMPLETIONS`."""
    return pa.Table.from_pylist(list(records), schema=COMPLETIONS.arrow_schema)


@dataclass
class DistilledOutcome(Outcome):
    """An `Outcome` and what was written on the way to it.

    Attributes:
        completions: All tries, with the columns of `COMPLETIONS`.
    """

    completions: Dataset = field(default_factory=lambda: dataset_of(completions_of(())))


@dataclass(frozen=True)
class Distilled:
    """A cluster, or a part of one, and what became of it.

    Attributes:
        rows: The source rows.
        distillation: What was written.
        prompt_hash: Hash of the prompt that it answers.
        prompt: The prompt of the new row, if the answer is its completion alone; else the answer holds both.
    """

    rows: list[dict[str, Any]]
    distillation: Distillation
    prompt_hash: str
    prompt: str | None = None


def clusters_of(
    clustered: Dataset, dropped: dict[str, str], texts: Dataset | None = None
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each cluster in order of id, clusters in order of number; rows without a cluster go to `dropped`.

    Args:
        clustered: Rows with `id` and `cluster_id`; `score` if there is one.
        dropped: Where the reasons go.
        texts: Rows with `id`, `prompt` and `completion`, if those of `clustered` have no texts. A batch of them is in
            memory at a time.

    Raises:
        ValueError: If a score is no whole number.
    """
    table = table_of(clustered)
    if "score" in table.column_names:  # pandas makes decimals of scores beside a null
        table = table_of(with_columns(clustered, {"score": as_field(table["score"], MEMBERS_SCHEMA.field("score"))}))
    written = table if texts is None else table_of(texts)
    is_alone = table["cluster_id"].is_null()
    dropped |= dict.fromkeys(table["id"].filter(is_alone).to_pylist(), NO_CLUSTER)
    # Rows without a cluster come last.
    order = pc.sort_indices(table.select(["cluster_id", "id"]), [("cluster_id", "ascending"), ("id", "ascending")])
    members = order.to_numpy()[: len(table) - pc.sum(is_alone, min_count=0).as_py()]
    places = members if texts is None else places_of(table["id"], written["id"])[members]
    known = table.select([name for name in ("id", "cluster_id", "score") if name in table.column_names])
    batches = gathered(known, members, BATCH), gathered(written.select(["prompt", "completion"]), places, BATCH)
    rows = (
        row
        for keys, pairs in zip(*batches, strict=True)
        for row in pa.Table.from_arrays(
            [*keys.columns, *pairs.columns], [*known.column_names, "prompt", "completion"]
        ).to_pylist()
    )
    for _, cluster in groupby(rows, key=lambda row: row["cluster_id"]):
        yield list(cluster)


def source_text(row: dict[str, Any], task_type: TaskType | str = TaskType.QA) -> str:
    """A row as the distiller reads it: a labeled pair, or for other task types its texts as they are."""
    if task_type == TaskType.QA:
        return pair_text(row["prompt"], row["completion"])
    return "\n".join(text for text in (row["prompt"], row["completion"]) if text)


def score_of(row: dict[str, Any]) -> int:
    """The score of a row; one that nobody judged ranks below all."""
    score = row.get("score")
    return -1 if score is None else score


def split_answer(answer: str, task_type: TaskType | str, prompt: str) -> tuple[str, str]:
    """A well-formed answer as prompt and completion: parted at the first occurrence of its form's last label.

    Args:
        answer: The text inside `<answer>`; in one that `prompts.answer_matches` there is no second occurrence.
        task_type: Its form.
        prompt: What a paragraph, which has no label, is the answer to.
    """
    labels = labels_of(task_type)
    if not labels:
        return prompt, answer.strip()
    head, _, tail = answer.strip().partition(labels[-1])
    return head.removeprefix(labels[0]).strip(), tail.strip()


def distilled_dataset(results: Iterable[Distilled], task_type: TaskType, distiller_name: str) -> Dataset:
    """Rows with the columns of `records.DISTILLED`.

    Clusters with the same result become one row that names the sources of all.
    """
    place: dict[str, int] = {}
    written, members = _Growing(WRITTEN_SCHEMA), _Growing(MEMBERS_SCHEMA)
    for result in results:
        prompt, completion = result.prompt, result.distillation.answer
        if prompt is None:
            best = max(result.rows, key=score_of)
            prompt, completion = split_answer(completion, task_type, best["prompt"])
        identifier = row_id(prompt, completion)
        if identifier not in place:
            place[identifier] = len(place)
            reasoning, cluster = result.distillation.reasoning, result.rows[0]["cluster_id"]
            written.append((identifier, prompt, completion, reasoning, cluster, result.prompt_hash))
        for row in result.rows:
            members.append((place[identifier], row["id"], row.get("score")))
    table, behind = written.table(), members.table().sort_by("number").combine_chunks()
    ends = np.append(0, np.bincount(behind["number"], minlength=len(table)).cumsum()).astype(np.int32)
    known = {name: table[name] for name in table.column_names}
    for name, values in (("sources", behind["id"]), ("source_scores", behind["score"])):
        known[name] = pa.ListArray.from_arrays(ends, values.combine_chunks())
    known["distiller"] = pa.repeat(pa.scalar(distiller_name), len(table))
    return dataset_of(pa.table([known[name] for name in DISTILLED], schema=DISTILLED.arrow_schema))


class _Growing:
    """A table that grows row by row; as Arrow it takes a half or a fifth of the memory of Python's objects."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._rows, self._tables = schema, list[tuple[Any, ...]](), list[pa.Table]()

    def append(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) == BATCH:
            self._flush()

    def table(self) -> pa.Table:
        self._flush()
        return pa.concat_tables(self._tables)

    def _flush(self) -> None:
        columns: list[Sequence[Any]] = list(zip(*self._rows, strict=True)) or [()] * len(self._schema)
        self._tables.append(pa.table(columns, schema=self._schema))
        self._rows = []
