"""Stage: rate rows and split them by score.

A chat model gives a row four judgements from 1 to 10, or one expected digit; a datastore of rows that were rated
before gives a score alone. What could not be judged keeps `score` None and says why in `rating_error`: no default
score exists.

One row after rating::

    {"id": "5f1d0c8f1f0b7a52", "prompt": "why sky blue", "completion": "scattering", "source": "dolly",
     "rating": {"rarity": 2, "complexity": 3, "informativeness": 4, "overall": 5}, "score": 1, "rating_error": None}

Source: arXiv 2510.20449 (rubric, compression of the overall judgement to 0..5, threshold).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_lmmixup.chat_model import ChatModel, ChatRequest
from hf_lmmixup.dispatch import Answers, TooManyRejects, ask_all, counted
from hf_lmmixup.journal import Journal, digest
from hf_lmmixup.rating_prompt import FOUR_AXES, REPEAT_NOTE, Rubric
from hf_lmmixup.records import HIGH_SCORE, RATED, RATING_AXES, Outcome, TaskType, pair_text, row_id
from hf_lmmixup.score_health import ScoreHealth, score_health
from hf_lmmixup.tables import text_pairs


if TYPE_CHECKING:  # both load more than a rating by chat model needs
    from hf_lmmixup.datastore import ScoredDatastore
    from hf_lmmixup.encoder import Encoder


logger = logging.getLogger(__name__)

ROWS_AT_A_TIME = 1024
"""Rows read, embedded or turned into Arrow at a time; bounds the memory of a large dataset."""

JOURNAL_FILE = "ratings.journal"

MAX_REJECT_RATE = 0.05
"""Share of rows without a score above which a run has failed."""

Judgement = tuple[dict[str, int] | None, int | None, str | None]
"""Rating, score and rating error of one row."""


def rate(
    dataset: Dataset,
    chat_model: ChatModel,
    directory: str | Path,
    *,
    task_type: TaskType | str = TaskType.QA,
    rubric: Rubric = FOUR_AXES,
    max_reject_rate: float = MAX_REJECT_RATE,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Have a chat model rate rows; what was rated stays in the directory's journal and is never asked again.

    A run that was interrupted in any way goes on where it was when it is called again with the same rows, model and
    settings, and gives the result of an undisturbed one.

    Args:
        dataset: Rows with at least `id`, `prompt` and `completion`; equal texts are rated once.
        chat_model: Who rates.
        directory: Where `ratings.journal` is kept; made if needed, used by one run at a time.
        task_type: What kind of text the rows are.
        rubric: What is asked: `FOUR_AXES`, or `ONE_DIGIT` for a `DigitModel`.
        max_reject_rate: Share of rows without a score that is put up with.
        progress: Called with the number of rows settled since the last call.

    Returns:
        The same rows, in their order, with `rating`, `score` and `rating_error` added. No row is dropped.

    Raises:
        ValueError: If the directory is in use, or belongs to a run with other rows or settings.
        ModelStopped: If the model will not answer any more.
        TooManyRejects: If more rows than allowed got no score; it carries the outcome.
    """
    settings = {
        **chat_model.settings,
        **rubric.settings,
        "task_type": TaskType(task_type).value,
        "input": digest(_keys(dataset)),
    }
    with Journal(Path(directory) / JOURNAL_FILE, settings) as journal:
        requests = _requests(dataset, rubric, task_type)
        answers = ask_all(chat_model, requests, rubric.read, journal, note=REPEAT_NOTE, progress=progress)
        rated = _with_judgements(dataset, _judgements(dataset, answers))
    outcome, unrated = Outcome(rated), _warn(rated)
    if unrated > max_reject_rate * len(rated):
        raise TooManyRejects(
            f"{unrated} of {len(rated)} rows got no score, {max_reject_rate:.0%} may; see rating_error.", outcome
        )
    return outcome


def rate_with_datastore(
    dataset: Dataset,
    datastore: "ScoredDatastore",
    encoder: "Encoder",
    *,
    task_type: TaskType | str = TaskType.QA,
    progress: Callable[[int], None] | None = None,
) -> Outcome:
    """Score rows by the judge of a datastore: the expected score, rounded to the nearest class.

    Args:
        dataset: Rows with at least `id`, `prompt` and `completion`.
        datastore: Rows scored before, embedded by the same encoder.
        encoder: Embeds `records.pair_text` of each row.
        task_type: Which rows of the datastore to ask.
        progress: Called with the number of rows settled since the last call.

    Returns:
        The same rows with `rating` (None: a datastore gives no four judgements), `score` and `rating_error` added.
        No row is dropped; a row the datastore cannot judge has `score` None and the reason in `rating_error`.

    Raises:
        ValueError: If the encoder is not the datastore's, or the datastore has no rows of the task type.
    """

    def judgements() -> Iterator[Judgement]:
        for _, pairs in text_pairs(dataset, ROWS_AT_A_TIME):
            texts = [pair_text(*pair) for pair in pairs]
            for expected in datastore.judge(texts, encoder, task_type):
                known = np.isfinite(expected)
                yield (None, _nearest(expected), None) if known else (None, None, "the datastore abstains")
            if progress is not None:
                progress(len(texts))

    rated = _with_judgements(dataset, judgements())
    _warn(rated)
    return Outcome(rated)


def combine_ratings(rated: Sequence[Dataset], *, min_raters: int = 1, max_spread: int | None = None) -> Outcome:
    """Combine what several raters gave the same rows: the median of each judgement, halves rounded up.

    Args:
        rated: The same rows in the same order, rated each time.
        min_raters: How many scores a row needs.
        max_spread: Largest distance between two scores of a row that is put up with; `None` allows any.

    Returns:
        The rows of the first, with the combined `rating`, `score` and `rating_error`. Raters that abstained are left
        out; a rating needs a rater that gave four judgements.

    Raises:
        ValueError: If there is nothing to combine or the rows differ.
    """
    if not rated or any(other["id"][:] != rated[0]["id"][:] for other in rated[1:]):
        raise ValueError("Ratings can be combined if there are some and all are of the same rows in the same order.")

    def judgements() -> Iterator[Judgement]:
        for start in range(0, len(rated[0]), ROWS_AT_A_TIME):
            parts = [part[start : start + ROWS_AT_A_TIME] for part in rated]
            for row in range(len(parts[0]["id"])):
                scores = [part["score"][row] for part in parts if part["score"][row] is not None]
                ratings = [part["rating"][row] for part in parts if part["rating"][row] is not None]
                if len(scores) < max(1, min_raters):
                    yield None, None, f"{len(scores)} of {len(parts)} raters gave a score"
                elif max_spread is not None and max(scores) - min(scores) > max_spread:
                    yield None, None, f"raters disagree by more than {max_spread}"
                else:
                    yield _median_rating(ratings), _nearest(median(scores)), None

    combined = _with_judgements(rated[0], judgements())
    _warn(combined)
    return Outcome(combined)


def split_by_score(dataset: Dataset, threshold: int = HIGH_SCORE) -> tuple[Dataset, Dataset, Dataset]:
    """Part rated rows into those good enough to keep, those to distil, and those nobody could judge.

    Args:
        dataset: Rows with `score`.
        threshold: Lowest score that counts as high.

    Returns:
        High (score >= threshold), low (score < threshold) and unrated (score None), each in the order of the input.
    """
    high: list[int] = []
    low: list[int] = []
    unrated: list[int] = []
    for row, score in enumerate(dataset["score"]):
        (unrated if score is None else high if score >= threshold else low).append(row)
    return dataset.select(high), dataset.select(low), dataset.select(unrated)


def health_of(rated: Dataset) -> ScoreHealth:
    """Whether the scores of rated rows can be trusted; see `score_health`."""
    lengths = np.fromiter(
        (len(pair_text(*pair)) for _, pairs in text_pairs(rated, ROWS_AT_A_TIME) for pair in pairs), np.int64
    )
    return score_health(rated["score"][:], lengths)


def _warn(rated: Dataset) -> int:
    """Log what is wrong with the scores; returns how many rows have none."""
    health = health_of(rated)
    for warning in health.warnings:
        logger.warning(warning)
    if health.unrated:
        logger.warning("%d rows have no score: %s", health.unrated, counted(filter(None, rated["rating_error"])))
    return health.unrated


def _keys(dataset: Dataset) -> Iterator[str]:
    """Under which key each row is asked: the id that loading gives it. Other ids may stand for other texts."""
    for _, pairs in text_pairs(dataset, ROWS_AT_A_TIME):
        yield from (row_id(*pair) for pair in pairs)


def _requests(dataset: Dataset, rubric: Rubric, task_type: TaskType | str) -> Iterator[ChatRequest]:
    for _, pairs in text_pairs(dataset, ROWS_AT_A_TIME):
        for pair in pairs:
            yield ChatRequest(row_id(*pair), rubric.messages(pair_text(*pair), task_type), schema=rubric.schema)


def _judgements(dataset: Dataset, answers: Answers) -> Iterator[Judgement]:
    for key in _keys(dataset):
        answer, error = answers[key]
        if answer is None:
            yield None, None, error
        else:
            rating = {axis: answer[axis] for axis in RATING_AXES} if len(answer) == len(RATING_AXES) else None
            yield rating, _nearest(min(9, max(4, answer["overall"])) - 4), None


def _nearest(score: float) -> int:
    """The nearest class of a score, halves rounded up."""
    return int(np.floor(score + 0.5))


def _median_rating(ratings: Sequence[dict[str, int]]) -> dict[str, int] | None:
    if not ratings:
        return None
    return {axis: _nearest(median(rating[axis] for rating in ratings)) for axis in RATING_AXES}


def _with_judgements(dataset: Dataset, judgements: Iterator[Judgement]) -> Dataset:
    """Add the three columns of a rating, in the types of `records.RATED`, replacing older ones."""
    names = ("rating", "score", "rating_error")
    types = [RATED.arrow_schema.field(name).type for name in names]
    chunks: list[list[pa.Array]] = [[pa.array([], kind)] for kind in types]
    for start in range(0, len(dataset), ROWS_AT_A_TIME):
        some = [next(judgements) for _ in range(start, min(start + ROWS_AT_A_TIME, len(dataset)))]
        for chunk, values, kind in zip(chunks, zip(*some, strict=True), types, strict=True):
            chunk.append(pa.array(values, kind))
    kept = dataset.remove_columns([name for name in names if name in dataset.column_names])
    for name, chunk in zip(names, chunks, strict=True):
        column: Any = pa.chunked_array(chunk)
        kept = kept.add_column(name, column, feature=RATED[name])
    return kept
