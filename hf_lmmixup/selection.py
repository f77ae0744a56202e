"""The best and rarest rows of a set, and originals and distilled rows in one.

Rows are ordered by score, then by how rare they are (the long-tail score), then by id, and taken from the top. The
long-tail score of a row is its mean cosine distance to its 15 nearest neighbors: `1 - mean_j cos(x, x_j)`. It is
min-max normalized over the set it is compared within (arXiv 2510.20449, code).

One row after merging::

    {"id": "9a41...", "prompt": "Why is the sky blue?", "completion": "Air scatters short waves more...",
     "reasoning": "Both say ...", "cluster_id": 7, "sources": ["5f1d...", "c02e..."], ..., "score": 5,
     "long_tail_score": 0.61, "origin": "distilled"}
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import islice

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_lmmixup.bounds import SELECT, check
from hf_lmmixup.diversity import keep_diverse
from hf_lmmixup.neighbors import NeighborGraph, build_graph
from hf_lmmixup.records import CHARACTERS_PER_TOKEN, HIGH_SCORE, MERGED, Outcome, pair_text
from hf_lmmixup.tables import (
    as_field,
    best_first,
    check_ids,
    dataset_of,
    rows_at,
    table_of,
    text_pairs,
    with_columns,
    without,
)


LONG_TAIL_NEIGHBORS = 15
"""Neighbors whose distance says how rare a row is (arXiv 2510.20449, code)."""

BATCH = 10_000

UNSCORED = "select: no score"
LOW_SCORE = "select: score below the minimum"
BEYOND_SIZE = "select: beyond the size"
BEYOND_BUDGET = "select: beyond the token budget"
TOO_SIMILAR = "select: too similar to another row ({})"
BEYOND_SHARE = "merge: beyond the size or share"
SAME_AS_ORIGINAL = "merge: same text as an original"


def long_tail_scores(
    embeddings: np.ndarray, k: int = LONG_TAIL_NEIGHBORS, graph: NeighborGraph | None = None
) -> np.ndarray:
    """How far each row lies from its nearest others: `1 - mean_j cos(x, x_j)` over k neighbors, itself excluded.

    Args:
        embeddings: Unit rows (n, d).
        k: Neighbors; all others where there are fewer.
        graph: The rows' neighbor graph, if it is at hand and at least k wide.

    Returns:
        Mean cosine distances (n,) float32, in [0, 2]; a lone row has no neighbors and gets 0.

    Raises:
        ValueError: If the graph belongs to another number of rows or is too narrow.
    """
    n = len(embeddings)
    if graph is None:
        graph = build_graph(embeddings, k)
    if len(graph.indices) != n or graph.indices.shape[1] < min(k, n - 1):
        raise ValueError(
            f"The graph is {graph.indices.shape}; {n} rows and k={k} need ({n}, {min(k, n - 1)}). Build it anew."
        )
    nearest = graph.similarities[:, :k].astype(np.float32)
    if nearest.shape[1] == 0:
        return np.zeros(n, np.float32)
    distances: np.ndarray = 1 - nearest.mean(axis=1)
    return distances


def min_max(scores: np.ndarray) -> np.ndarray:
    """Scores (n,) stretched to [0, 1]: `(s - min) / (max - min)`; all 0 where they are all equal."""
    if not len(scores):
        return scores.astype(np.float32)
    low, high = float(scores.min()), float(scores.max())
    return ((scores - low) / (high - low or 1)).astype(np.float32)


def select(
    dataset: Dataset,
    *,
    size: int | None = None,
    token_budget: int | None = None,
    min_score: int | None = HIGH_SCORE,
    max_similarity: float | None = None,
    embeddings: np.ndarray | None = None,
    graph: NeighborGraph | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> Outcome:
    """Take the best rows: highest score first, then highest long-tail score, then smallest id.

    Args:
        dataset: Rows with `id`, `prompt`, `completion` and `score`, and `long_tail_score` if no embeddings are given.
        size: Most rows to take.
        token_budget: Most tokens to take in all; a row that does not fit is passed over and a shorter one may follow.
        min_score: Smallest score; `None` also takes rows without a score, after all others.
        max_similarity: Highest cosine to a row already taken; a row above it is passed over. Needs embeddings.
        embeddings: Unit rows (n, d); the long-tail score is computed from them, normalized over all rows given.
        graph: The rows' neighbor graph, if it is at hand.
        count_tokens: Tokens of a text (`records.pair_text`), where the budget must be exact; by default a quarter of
            its characters, rounded up.

    Returns:
        The rows taken, best first, with `long_tail_score`, and the reason for every other row.

    Raises:
        ValueError: If a number is out of its bounds, ids repeat, scores are no numbers, or neither embeddings nor
            `long_tail_score` are there.
    """
    options = {"size": size, "token_budget": token_budget, "min_score": min_score, "max_similarity": max_similarity}
    check(SELECT, options)
    if max_similarity is not None and embeddings is None:
        raise ValueError(f"max_similarity={max_similarity} compares embeddings. Pass those of the rows.")
    check_scores(dataset)
    check_ids(table_of(dataset)["id"])
    dataset = _with_long_tail(dataset, embeddings, graph)
    ids, scores = dataset["id"][:], dataset["score"][:]
    order, dropped = _eligible(best_first(dataset, "score", "long_tail_score").tolist(), ids, scores, min_score)
    budget = None if token_budget is None else _Budget(token_budget, _token_counts(dataset, count_tokens))
    if max_similarity is None or embeddings is None:
        kept = list(islice(filter(budget, order) if budget else order, size))
    else:
        found = keep_diverse(embeddings, np.array(order), max_similarity, limit=size, accept=budget, graph=graph)
        kept = found.kept
        blocked = [row for row in order if found.blockers[row] >= 0]
        dropped |= {ids[row]: TOO_SIMILAR.format(ids[found.blockers[row]]) for row in blocked}
    refused = budget.refused if budget else set()
    dropped |= {ids[row]: BEYOND_BUDGET for row in order if row in refused}
    taken = set(kept)
    for row in order:
        if row not in taken:
            dropped.setdefault(ids[row], BEYOND_SIZE)
    return Outcome(rows_at(dataset, kept), dropped)


def check_scores(dataset: Dataset) -> None:
    """Refuse scores that are no numbers.

    Raises:
        ValueError: If the column holds something else.
    """
    kind = table_of(dataset.select_columns("score")).schema.field("score").type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise ValueError(f"The column score holds {kind}, no numbers. Write them as numbers from 0 to 5.")


class _Budget:
    """Accepts rows while their tokens fit."""

    def __init__(self, left: int, costs: np.ndarray) -> None:
        self.left, self.costs = left, costs
        self.refused: set[int] = set()

    def __call__(self, row: int) -> bool:
        cost = int(self.costs[row])
        if cost > self.left:
            self.refused.add(row)
            return False
        self.left -= cost
        return True


def merge(
    originals: Dataset, distilled: Dataset, *, size: int | None = None, distilled_share: float | None = None
) -> Outcome:
    """Originals and distilled rows in one set, each side's best first to be taken.

    Args:
        originals: Rows with `id`, `prompt` and `completion`; `source`, `score` and `long_tail_score` where known.
        distilled: Rows of `records.DISTILLED`; `score` and `long_tail_score` where known.
        size: Most rows in all. The paper takes 10,000.
        distilled_share: Wanted share of distilled rows, 0 to 1. The paper takes 0.5. Where one side has too few rows
            the result is smaller and the share holds. `None` takes the best of both sides together.

    Returns:
        Rows of `records.MERGED` by id: `origin` tells the sides apart; an original is its own source and has no
        reasoning, cluster or distiller. A distilled row with the text of an original is dropped for the original.

    Raises:
        ValueError: If the share is not in [0, 1], the size is negative, ids of a side repeat, or a column cannot be
            read as that of `records.MERGED`.
    """
    check(SELECT, {"distilled_share": distilled_share, "size": size})
    for side, rows in (("originals", originals), ("distilled", distilled)):
        check_ids(table_of(rows)["id"], side)
    known = set(originals["id"][:])
    repeated = [identifier for identifier in distilled["id"][:] if identifier in known]
    if repeated:
        distilled = without(distilled, known)
    tables = _as_merged(originals, "original"), _as_merged(distilled, "distilled")
    both = dataset_of(pa.concat_tables(tables))
    ids, order = both["id"][:], best_first(both, "score", "long_tail_score").tolist()
    taken = _take(order, len(originals), len(distilled), size, distilled_share)
    dropped = dict.fromkeys(repeated, SAME_AS_ORIGINAL)
    dropped |= {ids[row]: BEYOND_SHARE for row in set(order) - set(taken)}
    return Outcome(rows_at(both, sorted(taken, key=ids.__getitem__)), dropped)


def _take(
    order: Sequence[int], originals: int, distilled: int, size: int | None, distilled_share: float | None
) -> list[int]:
    """The rows to take from the best-first `order`; row numbers below `originals` are originals."""
    if distilled_share is None:
        return list(order[:size])
    share = Fraction(str(distilled_share))  # as it is written: 7 / 0.14 is 49.99...
    limit = originals + distilled if size is None else size
    if share > 0:
        limit = min(limit, int(distilled / share))
    if share < 1:
        limit = min(limit, int(originals / (1 - share)))
    wanted = round(limit * share)
    best_originals = [row for row in order if row < originals][: limit - wanted]
    return best_originals + [row for row in order if row >= originals][:wanted]


def _eligible(
    order: Sequence[int], ids: Sequence[str], scores: Sequence[int | None], min_score: int | None
) -> tuple[list[int], dict[str, str]]:
    """The rows of `order` whose score is high enough, and the reasons of the others."""
    if min_score is None:
        return list(order), {}
    dropped = {}
    eligible = []
    for row in order:
        score = scores[row]
        if score is not None and score >= min_score:
            eligible.append(row)
        else:  # not a number is no score either
            dropped[ids[row]] = UNSCORED if score is None or score != score else LOW_SCORE
    return eligible, dropped


def _with_long_tail(dataset: Dataset, embeddings: np.ndarray | None, graph: NeighborGraph | None) -> Dataset:
    if embeddings is None:
        if "long_tail_score" not in dataset.column_names:
            raise ValueError("The rows have no long_tail_score. Pass their embeddings, or add the column.")
        return dataset
    if len(embeddings) != len(dataset):
        raise ValueError(f"{len(dataset)} rows need as many embeddings, not {len(embeddings)}.")
    rarity = min_max(long_tail_scores(embeddings, graph=graph))
    return with_columns(dataset, {"long_tail_score": pa.array(rarity, pa.float32())})


def _token_counts(dataset: Dataset, count_tokens: Callable[[str], int] | None) -> np.ndarray:
    count = count_tokens or (lambda text: -(-len(text) // CHARACTERS_PER_TOKEN))
    counts: list[int] = []
    for _, pairs in text_pairs(dataset, BATCH):
        counts += [count(pair_text(*pair)) for pair in pairs]
    return np.array(counts, np.int64)


def _as_merged(dataset: Dataset, origin: str) -> pa.Table:
    """The rows with exactly the columns of `records.MERGED`; what a side does not know is null."""
    table = table_of(dataset)
    n = len(table)
    known = {name: table[name] for name in table.column_names}
    known["origin"] = pa.array([origin] * n, pa.string())
    known["score"] = as_field(known.get("score", pa.nulls(n)), MERGED.arrow_schema.field("score"))
    if origin == "original":
        known |= {"sources": _one_each(known["id"]), "source_scores": _one_each(known["score"])}
        known |= {name: pa.nulls(n) for name in ("reasoning", "cluster_id", "distiller", "prompt_hash")}
    schema = MERGED.arrow_schema
    return pa.table([as_field(known.get(field.name, pa.nulls(n)), field) for field in schema], schema=schema)


def _one_each(column: pa.Array | pa.ChunkedArray) -> pa.ListArray:
    """A list of one for each value."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int32)), values)
