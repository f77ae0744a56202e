"""Rows and scores of the lm-eval task `lmmixup_questions`: questions with one short answer, from any file.

One row, as GSM8K writes it; without `####` the whole answer is what counts::

    {"question": "4 rows of 9 jars; 7 are taken. How many are left?", "answer": "36 - 7 = 29. #### 29"}
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from hf_lmmixup.inputs import raw_rows
from hf_lmmixup.loading import normalize_rows


EXAMPLES = 2
"""Rows that serve as examples in the prompt and are not asked."""

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def load(data: str | None = None, **metadata: Any) -> DatasetDict:
    """The rows of a file: the first ones as examples (`train`), the others to be asked (`test`).

    Args:
        data: A `.jsonl`, `.json` or `.parquet` file with `question` and `answer`, or with instruction pairs in any
            form that `lmmixup run` reads; by default the few questions beside this file.
        metadata: What else stands in the task's metadata.

    Raises:
        ValueError: If there are not more rows than examples.
    """
    path = Path(data) if data else Path(__file__).with_suffix(".jsonl")
    rows = normalize_rows(_rows(path), name=path.name).dataset
    if len(rows) <= EXAMPLES:
        raise ValueError(f"{path} has {len(rows)} usable rows; the task needs more than {EXAMPLES}.")
    pairs = Dataset.from_dict({"question": rows["prompt"][:], "answer": rows["completion"][:]})
    asked = range(EXAMPLES, len(pairs))
    return DatasetDict({"train": pairs.select(range(EXAMPLES)), "test": pairs.select(asked)})


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Raw rows with their places; a question with its answer is an instruction pair."""
    for place, row in raw_rows(path):
        if isinstance(row, dict) and {"question", "answer"} <= set(row):
            row = {"prompt": row["question"], "completion": row["answer"]}
        yield place, row


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the reply ends in the wanted number, or for answers without one is the wanted text."""
    return {"exact_match": float(final(results[0]) == final(doc["answer"]))}


def final(text: str) -> str:
    """What counts of an answer: what follows `####`, else its last number, else its words."""
    head, mark, tail = text.rpartition("####")
    numbers = NUMBER.findall(tail if mark else text)
    if numbers:
        return (numbers[0] if mark else numbers[-1]).replace(",", "").removesuffix(".")
    return " ".join(re.findall(r"\w+", text.casefold()))
