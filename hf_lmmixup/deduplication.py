"""Rows that say the same: of a pair of duplicates exactly one stays, and it is the better one.

First rows with the same text, up to case and white space, then rows with nearly the same embedding. The winner of a
group has the best score (a row without a score is worst), then the smallest id. A row is compared with the winners
only, so no row is dropped for a row that is itself dropped.

One dropped row::

    {"c02e41d09b6f3a77": "deduplicate: similar to another row (5f1d0c8f1f0b7a52)"}
"""

import string
from collections.abc import Callable, Iterator
from itertools import starmap
from typing import TypeVar

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_lmmixup.bounds import DEDUPLICATE, check
from hf_lmmixup.diversity import keep_diverse
from hf_lmmixup.neighbors import NeighborGraph
from hf_lmmixup.records import Outcome, row_id
from hf_lmmixup.tables import best_first, check_ids, rows_at, table_of, text_pairs, without


MAX_SIMILARITY = 0.99
"""Highest cosine between two rows that stay. Rows that say the same in other words are what a distillation merges;
only copies should go. Where a long passage stands before a short question (T0), MiniLM puts different questions above
0.98, some above 0.995, so look at the pairs before lowering it."""

BATCH = 10_000

LOWER_CASE = bytes.maketrans(string.ascii_uppercase.encode(), string.ascii_lowercase.encode())
ASCII_SPACES = bytes(code for code in range(128) if chr(code).isspace())

T = TypeVar("T")

SAME_TEXT = "deduplicate: same text as another row ({})"
SIMILAR = "deduplicate: similar to another row ({})"


def deduplicate(
    dataset: Dataset,
    embeddings: np.ndarray | None = None,
    *,
    max_similarity: float = MAX_SIMILARITY,
    graph: NeighborGraph | None = None,
) -> Outcome:
    """Drop duplicates.

    Args:
        dataset: Rows with distinct `id`s, `prompt` and `completion`; `score` where known.
        embeddings: Their unit vectors (n, d); without them only equal texts are found.
        max_similarity: Highest cosine between two rows that stay.
        graph: The rows' neighbor graph, if it is at hand.

    Returns:
        The rows that stay, in their order, and for every other row which row stands for it.

    Raises:
        ValueError: If the limit is no cosine, ids repeat, or rows, embeddings and graph do not match.
    """
    dropped = find_duplicates(dataset, embeddings, max_similarity=max_similarity, graph=graph)
    return Outcome(without(dataset, dropped), dropped)


def find_duplicates(
    dataset: Dataset,
    embeddings: np.ndarray | None = None,
    *,
    max_similarity: float = MAX_SIMILARITY,
    graph: NeighborGraph | None = None,
) -> dict[str, str]:
    """The rows that `deduplicate` drops, with the reasons; arguments and errors as there."""
    check(DEDUPLICATE, {"max_similarity": max_similarity})
    ids = table_of(dataset)["id"].cast(pa.string())
    _check(ids, embeddings, graph)
    order = best_first(dataset, *(["score"] if "score" in dataset.column_names else []))
    first = _first_of_text(dataset, order)
    is_first = first == np.arange(len(ids))
    dropped = _reasons(SAME_TEXT, ids, np.flatnonzero(~is_first), first)
    if embeddings is not None:
        found = keep_diverse(embeddings, order[is_first[order]], max_similarity, graph=graph)
        dropped |= _reasons(SIMILAR, ids, np.flatnonzero(is_first & (found.blockers >= 0)), found.blockers)
    return dropped


def normalized(text: str) -> str:
    """The text without differences of case and white space."""
    return " ".join(text.casefold().split())


def _first_of_text(dataset: Dataset, order: np.ndarray) -> np.ndarray:
    """For each row (n,) the first one in `order` with the same text."""
    hashes = np.fromiter(map(hash, _pairs(dataset, _letters)), np.int64, len(dataset))
    _, number, count = np.unique(hashes, return_inverse=True, return_counts=True)
    is_alike = count[number] > 1  # "a b" and "ab" have the same letters, but not the same digest
    alike = np.flatnonzero(is_alike)
    keys = dict(zip(alike.tolist(), starmap(row_id, _pairs(rows_at(dataset, alike), normalized)), strict=True))
    first, rows = np.arange(len(dataset)), dict[str, int]()
    for row in order[is_alike[order]].tolist():
        first[row] = rows.setdefault(keys[row], row)
    return first


def _reasons(reason: str, ids: pa.ChunkedArray, rows: np.ndarray, winners: np.ndarray) -> dict[str, str]:
    """Ids of rows with the reason that names the row which stands for them; `winners` is (n,)."""
    dropped, kept = (ids.take(pa.array(places)).to_pylist() for places in (rows, winners[rows]))
    return {identifier: reason.format(winner) for identifier, winner in zip(dropped, kept, strict=True)}


def _letters(text: str) -> bytes:
    """What a text has in common with all that are the same after `normalized`, in a third of the time."""
    if not text.isascii():
        text = "".join(text.casefold().split())
    return text.encode("utf-8", "surrogatepass").translate(LOWER_CASE, ASCII_SPACES)


def _pairs(dataset: Dataset, of: Callable[[str], T]) -> Iterator[tuple[T, T]]:
    """A function's value for the prompt and the completion of each row."""
    for _, pairs in text_pairs(dataset, BATCH):
        yield from ((of(prompt), of(completion)) for prompt, completion in pairs)


def _check(ids: pa.ChunkedArray, embeddings: np.ndarray | None, graph: NeighborGraph | None) -> None:
    check_ids(ids)
    if embeddings is not None and len(embeddings) != len(ids):
        raise ValueError(f"{len(ids)} rows need as many embeddings, not {len(embeddings)}.")
    if graph is not None and len(graph) != len(ids):
        raise ValueError(f"The graph has {len(graph)} rows and the dataset {len(ids)}. Build it anew.")
