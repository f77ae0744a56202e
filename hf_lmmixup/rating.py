"""Stage: rate rows and split them by score.

A rater gives a row four judgements from 1 to 10, or reads its score off a datastore of rows that were rated before.
What could not be judged keeps `score` None and says why in `rating_error`; no default score exists.

One row after rating::

    {"id": "5f1d0c8f1f0b7a52", "prompt": "why sky blue", "completion": "scattering", "source": "dolly",
     "rating": {"rarity": 2, "complexity": 3, "informativeness": 4, "overall": 5}, "score": 1, "rating_error": None}

Source: arXiv 2510.20449 (rubric, compression of the overall judgement to 0..5, threshold).
"""

import logging
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_lmmixup.datastore import ScoredDatastore
from hf_lmmixup.encoder import Encoder
from hf_lmmixup.records import HIGH_SCORE, RATED, Outcome, TaskType, pair_text


logger = logging.getLogger(__name__)

ENCODE_ROWS = 4096
"""Rows embedded at a time; bounds the memory of a large dataset."""


def rate_with_datastore(
    dataset: Dataset, datastore: ScoredDatastore, encoder: Encoder, *, task_type: TaskType | str = TaskType.QA
) -> Outcome:
    """Score rows by their neighbours in a datastore: the expected score, rounded to the nearest class.

    Args:
        dataset: Rows with at least `id`, `prompt` and `completion`.
        datastore: Rows scored before, embedded by the same encoder.
        encoder: Embeds `records.pair_text` of each row.
        task_type: Which rows of the datastore to ask.

    Returns:
        The same rows with `rating` (None: a datastore gives no four judgements), `score` and `rating_error` added.
        No row is dropped; a row the datastore cannot judge has `score` None and the reason in `rating_error`.

    Raises:
        ValueError: If the encoder is not the datastore's, or the datastore has no rows of the task type.
    """
    if encoder.name != datastore.encoder:
        raise ValueError(
            f"The datastore was built with the encoder {datastore.encoder!r}, not {encoder.name!r}. "
            f"Load {datastore.encoder!r} or build the datastore again."
        )
    scores: list[int | None] = []
    errors: list[str | None] = []
    for start in range(0, len(dataset), ENCODE_ROWS):
        rows = dataset[start : start + ENCODE_ROWS]
        texts = [pair_text(*pair) for pair in zip(rows["prompt"], rows["completion"], strict=True)]
        expected = datastore.expected(encoder.encode(texts), task_type)
        for value in expected:
            known = value is not None and np.isfinite(value)
            scores.append(int(np.floor(value + 0.5)) if known else None)
            errors.append(None if known else "the datastore abstains")
    return Outcome(rated_rows(dataset, [None] * len(scores), scores, errors))


def split_by_score(dataset: Dataset, threshold: int = HIGH_SCORE) -> tuple[Dataset, Dataset, Dataset]:
    """Part rated rows into those good enough to keep, those to distil, and those nobody could judge.

    Args:
        dataset: Rows with `score`.
        threshold: Lowest score that counts as high.

    Returns:
        High (score >= threshold), low (score < threshold) and unrated (score None), each in the order of the input.
    """
    scores = dataset["score"]
    high: list[int] = []
    low: list[int] = []
    unrated: list[int] = []
    for row, score in enumerate(scores):
        (unrated if score is None else high if score >= threshold else low).append(row)
    return dataset.select(high), dataset.select(low), dataset.select(unrated)


def rated_rows(
    dataset: Dataset,
    ratings: Iterable[dict[str, int] | None],
    scores: Iterable[int | None],
    errors: Iterable[str | None],
) -> Dataset:
    """Add the three columns of a rating, in the types of `records.RATED`, replacing older ones."""
    added = {"rating": list(ratings), "score": list(scores), "rating_error": list(errors)}
    kept = dataset.remove_columns([name for name in added if name in dataset.column_names])
    for name, values in added.items():
        kept = kept.add_column(name, pa.array(values, RATED.arrow_schema.field(name).type), feature=RATED[name])
    return kept
