"""Rows that are far enough from each other: the best first, each compared with the rows already kept.

A row is kept if its cosine to every row kept before it is at most `max_similarity`. Comparing with *kept* rows, not
with all rows, is what lets exactly one of two duplicates stay, and comparing in order of quality lets it be the better
one. The neighbor graph answers for every row whose list reaches below the limit (its `horizon`); rows with more
near-duplicates than the graph is wide are compared with the kept rows of their kind, a block at a time. No n x n
matrix is built, and without a graph the answer is the same, only slower.

Four rows, best first, limit 0.9::

    a: kept    b: cosine 0.95 to a, blocked by a    c: cosine 0.95 to b, 0.85 to a, kept    d: kept
"""

from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np

from hf_lmmixup.half_precision import check_finite
from hf_lmmixup.neighbors import NeighborGraph, rounded


BLOCK = 1024
"""Rows compared with each other at a time: a 4 MiB matrix of cosines."""


@dataclass
class DiverseRows:
    """Which rows stay and which kept row stands for each of the others.

    Attributes:
        kept: Row numbers, in the order in which they were kept.
        blockers: Per row (n,), a kept row that it is too similar to; -1 for kept rows and for rows without one, which
            `accept` passed over or the limit left out.
    """

    kept: list[int]
    blockers: np.ndarray


def keep_diverse(
    embeddings: np.ndarray,
    order: np.ndarray,
    max_similarity: float,
    *,
    limit: int | None = None,
    accept: Callable[[int], bool] | None = None,
    graph: NeighborGraph | None = None,
) -> DiverseRows:
    """Walk rows from best to worst and keep those that are at most `max_similarity` similar to every kept row.

    Args:
        embeddings: Unit rows (n, d).
        order: Row numbers to visit, best first; each at most once.
        max_similarity: Highest allowed cosine between two kept rows.
        limit: Stop once so many rows are kept.
        accept: Asked last, for a row that would be kept; `False` passes it over, and it blocks nothing.
        graph: The rows' neighbor graph, if it is at hand. The result is the same up to the graph's recall.

    Returns:
        The rows kept and, for each blocked row, its blocker.

    Raises:
        ValueError: If there is no graph, and a number of the embeddings is not finite.
    """
    if graph is None:
        check_finite(embeddings)
    walk = _Walk(embeddings, max_similarity, len(embeddings) if limit is None else limit, accept, graph)
    for start in range(0, len(order), BLOCK):
        if len(walk.result.kept) >= walk.limit:
            break
        walk.visit(np.asarray(order[start : start + BLOCK]))
    return walk.result


class _Walk:
    """The state of one walk: what is kept, and the kept rows whose neighbors the graph does not all list."""

    def __init__(
        self,
        embeddings: np.ndarray,
        max_similarity: float,
        limit: int,
        accept: Callable[[int], bool] | None,
        graph: NeighborGraph | None,
    ) -> None:
        n, d = embeddings.shape
        self.embeddings, self.max_similarity, self.limit, self.accept = embeddings, max_similarity, limit, accept
        self.result = DiverseRows([], np.full(n, -1, np.int64))
        self.is_kept = np.zeros(n, bool)
        self.graph = graph
        # If the graph lists all near rows of either of two rows, one of the lists has the pair; so the rows below only
        # need comparing with each other.
        self.unlisted: np.ndarray = np.ones(n, bool)
        self.has_near: np.ndarray = np.zeros(n, bool)
        if graph is not None:
            self.unlisted = np.asarray(graph.horizon > max_similarity)
            # Most rows of a pool have no near row; what a list would say of them is known at once.
            self.has_near = np.asarray((graph.similarities > max_similarity).any(axis=1))
        self.kept_unlisted: list[int] = []
        self.index = faiss.IndexFlatIP(d)

    def visit(self, block: np.ndarray) -> None:
        """Decide the rows of one block, in order."""
        blockers = self.result.blockers
        self._compare_with_kept(block[self.unlisted[block] & (blockers[block] < 0)])
        rows = block[blockers[block] < 0]
        places = np.flatnonzero(self.unlisted[rows])
        near = self._near_each_other(rows[places])
        place_of = dict(zip(rows[places].tolist(), range(len(places)), strict=True))
        added = []
        for row in rows.tolist():
            if (
                blockers[row] >= 0
                or (self.has_near[row] and self._listed_near(row))
                or (self.accept and not self.accept(row))
            ):
                continue
            self.result.kept.append(row)
            self.is_kept[row] = True
            if self.has_near[row]:
                self._block_listed(row)
            if row in place_of:
                added.append(row)
                self._block(rows[places][near[place_of[row]]], row)
            if len(self.result.kept) >= self.limit:
                return
        if added:
            self.index.add(self._vectors(np.array(added)))
            self.kept_unlisted += added

    def _compare_with_kept(self, rows: np.ndarray) -> None:
        if not len(rows) or not self.kept_unlisted:
            return
        similarities, nearest = self.index.search(self._vectors(rows), 1)
        over = rounded(similarities[:, 0]) > self.max_similarity
        self.result.blockers[rows[over]] = np.array(self.kept_unlisted)[nearest[over, 0]]

    def _near_each_other(self, rows: np.ndarray) -> np.ndarray:
        vectors = self._vectors(rows)
        near: np.ndarray = rounded(vectors @ vectors.T) > self.max_similarity
        return near

    def _listed_near(self, row: int) -> bool:
        """Whether a kept row is in this row's list; it becomes the blocker."""
        listed = self._listed(row)
        kept = listed[self.is_kept[listed]]
        if len(kept):
            self.result.blockers[row] = kept[0]
        return len(kept) > 0

    def _block_listed(self, row: int) -> None:
        self._block(self._listed(row), row)

    def _listed(self, row: int) -> np.ndarray:
        if self.graph is None:
            return np.zeros(0, np.int64)
        indices = self.graph.indices[row][self.graph.similarities[row] > self.max_similarity]
        listed: np.ndarray = indices[indices >= 0]
        return listed

    def _block(self, rows: np.ndarray, blocker: int) -> None:
        open_rows = rows[(self.result.blockers[rows] < 0) & ~self.is_kept[rows]]
        self.result.blockers[open_rows] = blocker

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.embeddings[rows], dtype=np.float32)
