"""Nearest rows by cosine similarity: one exact search and one graph that five stages share.

Embeddings are unit rows, so the inner product is the cosine. No n x n matrix is ever built: FAISS keeps k neighbours a
row. A row is never its own neighbour, and it is left out by its number, not by its position, because the row in first
place may be an exact duplicate.

One row of a graph::

    indices[0] = [17, 4, 9]    similarities[0] = [0.93, 0.88, 0.41]
"""

from dataclasses import dataclass

import faiss
import numpy as np


EXACT_BELOW = 50_000
"""Row count up to which the search is exact; measured on two cores, a brute-force graph then takes about a minute."""


@dataclass(frozen=True)
class NeighborGraph:
    """The k nearest other rows of every row.

    Attributes:
        indices: Row numbers (n, k), int32, most similar first, equal similarities by ascending row number.
        similarities: Their cosines (n, k), float32.
    """

    indices: np.ndarray
    similarities: np.ndarray


def top_k(embeddings: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `embeddings` that are most similar to each query, exactly.

    Args:
        embeddings: Unit rows (n, d) to search, float32.
        queries: Unit rows (m, d).
        k: How many neighbours; at most n are returned.

    Returns:
        Similarities (m, min(k, n)) float32 in descending order and row numbers (m, min(k, n)) int64.

    Raises:
        ValueError: If `k` is not positive, or the two widths differ.
    """
    rows, wanted = _unit_rows(embeddings), _unit_rows(queries)
    if k < 1:
        raise ValueError(f"k={k} neighbors were asked for. Expected at least 1.")
    if rows.shape[1] != wanted.shape[1]:
        raise ValueError(
            f"The queries have {wanted.shape[1]} dimensions and the embeddings {rows.shape[1]}. "
            "Encode both with the same encoder."
        )
    if not len(rows) or not len(wanted):
        empty = (len(wanted), min(k, len(rows)))
        return np.zeros(empty, np.float32), np.zeros(empty, np.int64)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    similarities, indices = index.search(wanted, min(k, len(rows)))
    return similarities, indices


def build_graph(embeddings: np.ndarray, k: int, *, exact_below: int = EXACT_BELOW) -> NeighborGraph:
    """The neighbour graph of a set of unit rows.

    Args:
        embeddings: Unit rows (n, d), float32.
        k: Neighbours per row; at most n - 1 exist.
        exact_below: Row count below which the search is exact.

    Returns:
        The graph; with fewer than two rows its width is 0.
    """
    n = len(embeddings)
    width = max(0, min(k, n - 1))
    if width == 0:
        return NeighborGraph(np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32))
    similarities, indices = top_k(embeddings, embeddings, width + 1)
    # Pushing the row itself behind everything else also covers a row that its duplicates crowded out.
    ranked = np.where(indices == np.arange(n)[:, None], -np.inf, similarities)
    order = np.lexsort((indices, -ranked), axis=1)[:, :width]
    return NeighborGraph(
        np.take_along_axis(indices, order, axis=1).astype(np.int32),
        np.take_along_axis(similarities, order, axis=1).astype(np.float32),
    )


def _unit_rows(embeddings: np.ndarray) -> np.ndarray:
    matrix = np.ascontiguousarray(embeddings, dtype=np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"Embeddings have shape {matrix.shape}. Expected two dimensions: (rows, width).")
    return matrix
