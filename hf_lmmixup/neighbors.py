"""Nearest rows by cosine similarity: one exact search and one graph that five stages share.

Embeddings are unit rows, so the inner product is the cosine. No n x n matrix is ever built: k neighbors a row stay.
A row is never its own neighbor, and it is left out by its number, not by its position, because the row in first place
may be an exact duplicate.

Up to `EXACT_BELOW` rows the graph is exact. Above, it is an inverted file: k-means cells, and each row is compared
with the rows of the cells nearest to it. How many cells is not guessed: on a sample of rows the exact neighbors are
found, the fewest cells that hold 95 % of them are taken (at most 32), and their share is logged and kept: `recall`.

One row of a graph::

    indices[0] = [17, 4, 9]    similarities[0] = [0.93, 0.88, 0.41]    horizon[0] = 0.41
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from safetensors import SafetensorError, safe_open

from hf_lmmixup.cell_search import cell_type, nearest_in_cells
from hf_lmmixup.exact_search import nearest_of_all, search
from hf_lmmixup.half_precision import check_finite, widened
from hf_lmmixup.nearest import STEPS, in_threads
from hf_lmmixup.tensor_files import save_tensors


logger = logging.getLogger(__name__)

EXACT_BELOW = 50_000
"""Row count up to which the graph is exact; of 384 dimensions it then takes about five seconds on two cores."""

MIN_RECALL, SAMPLE_ROWS = 0.95, 512
"""Share of a sample's exact neighbors that the searched cells must hold, and the rows of the sample."""

ROWS_PER_CELL = 256
"""Mean rows of a cell: few enough to skip most of the data, enough for matrix products to run at full speed."""

TRAINING_ROWS_PER_CELL, TRAINING_ROUNDS = 64, 6
"""k-means on a sample: cells need only be compact, and recall is measured. More rows pay more than more rounds."""

MAX_PROBES = 32
"""Most cells a row is compared with: 8,192 rows."""

BLOCK, QUERIES = 65_536, 1024
"""Rows converted to another precision at a time, and rows whose nearest cells one thread finds at a time."""

NO_HORIZON = -2.0
"""Below every cosine: the horizon of a row whose neighbors are all other rows."""


@dataclass(frozen=True)
class NeighborGraph:
    """The k nearest other rows of every row.

    Attributes:
        indices: Row numbers (n, k), int32, most similar first, equal similarities by ascending row number. -1 is a
            hole: a neighbor that is not among the rows (see `take`); holes come last.
        similarities: Their cosines (n, k), float32; -1 at a hole.
        horizon: No row that is missing from a row's neighbors is more similar than this (n,), float32.
        recall: Share of the true neighbors that were found, measured on a sample; 1.0 where the search was exact.
    """

    indices: np.ndarray
    similarities: np.ndarray
    horizon: np.ndarray
    recall: float = 1.0

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def trueness(self) -> str:
        """How far its neighbors are the true ones, in words."""
        sample = min(len(self), SAMPLE_ROWS)
        return f"neighbor graph: {self.recall:.1%} of the true neighbors, measured on {sample} rows"

    def take(self, rows: np.ndarray) -> "NeighborGraph":
        """The graph of some of the rows, in the given order; neighbors that are not among them leave holes.

        Args:
            rows: Distinct row numbers (m,); place i of the result is row `rows[i]`.

        Returns:
            A graph of m rows and the same width.
        """
        ascending = bool((np.diff(rows) > 0).all())
        if ascending and len(rows) == len(self):
            return self
        place = np.full(len(self) + 1, -1, np.int32)
        place[rows] = np.arange(len(rows), dtype=np.int32)
        indices = place[self.indices[rows]]
        similarities = np.where(indices < 0, np.float32(-1), self.similarities[rows])
        if ascending:  # equal similarities stay in order; only the holes go last
            known = indices >= 0
            front = np.arange(indices.shape[1]) < known.sum(axis=1, keepdims=True)
            indices[front], indices[~front] = indices[known], -1
            similarities[front], similarities[~front] = similarities[known], -1
        else:
            indices, similarities = _ordered(indices, similarities)
        return NeighborGraph(indices, similarities, self.horizon[rows], self.recall)

    def save(self, path: str | Path) -> None:
        """Write the graph to a safetensors file; `load` gives the same graph back, bit by bit."""
        steps = np.empty(self.similarities.shape, np.int16)
        for start in range(0, len(self), BLOCK):
            steps[start : start + BLOCK] = np.rint(self.similarities[start : start + BLOCK] * STEPS)
        tensors = {
            "indices": np.ascontiguousarray(self.indices),
            "similarities": steps,
            "horizon": np.rint(self.horizon * STEPS).astype(np.int32),
        }
        save_tensors(tensors, Path(path), {"recall": repr(self.recall)})

    @classmethod
    def load(cls, path: str | Path) -> "NeighborGraph":
        """Read a graph that `save` wrote.

        Raises:
            ValueError: If the file is not such a graph.
        """
        try:
            with safe_open(str(path), "numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                recall = float((file.metadata() or {}).get("recall", "1.0"))
            indices, steps, horizon = (tensors.pop(name) for name in ("indices", "similarities", "horizon"))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is not a neighbor graph ({error}). Build the graph again.") from error
        n = len(indices)
        inside = indices.min(initial=0) >= -1 and indices.max(initial=-1) < n
        if tensors or indices.shape != steps.shape or horizon.shape != (n,) or not inside:
            raise ValueError(f"The neighbor graph in {path} contradicts itself. Build the graph again.")
        return cls(indices, _as_cosines(steps), _as_cosines(horizon), recall)


def top_k(embeddings: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of `embeddings` that are most similar to each query, exactly.

    Args:
        embeddings: Unit rows (n, d) to search, float32.
        queries: Unit rows (m, d).
        k: How many neighbors; at most n are returned.

    Returns:
        Similarities (m, min(k, n)) float32 in descending order and row numbers (m, min(k, n)) int64.

    Raises:
        ValueError: If `k` is not positive, or the two widths differ.
    """
    rows, wanted = _matrix(embeddings), _matrix(queries)
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
    return search(rows, wanted, min(k, len(rows)))


def rounded(cosines: np.ndarray) -> np.ndarray:
    """Cosines as the graph holds them: multiples of `1 / STEPS` in [-1, 1], float32."""
    return (np.rint(cosines.clip(-1, 1) * STEPS) / STEPS).astype(np.float32)


def build_graph(embeddings: np.ndarray, k: int, *, exact_below: int = EXACT_BELOW, seed: int = 0) -> NeighborGraph:
    """The neighbor graph of a set of unit rows.

    Args:
        embeddings: Unit rows (n, d), float32 or float16.
        k: Neighbors per row; at most n - 1 exist.
        exact_below: Row count up to which the search is exact.
        seed: Seed of the cells and of the sample that measures recall.

    Returns:
        The graph; with fewer than two rows its width is 0.

    Raises:
        ValueError: If a number is not finite.
    """
    check_finite(embeddings)
    n = len(embeddings)
    width = max(0, min(k, n - 1))
    if width == 0:
        nothing = np.full(n, NO_HORIZON, np.float32)
        return NeighborGraph(np.zeros((n, 0), np.int32), np.zeros((n, 0), np.float32), nothing)
    if n > exact_below:
        return _cell_graph(embeddings, width, seed)
    indices, similarities = nearest_of_all(_matrix(embeddings), width)
    return NeighborGraph(indices, similarities, _horizon(similarities, n))


def _cell_graph(embeddings: np.ndarray, width: int, seed: int) -> NeighborGraph:
    """The graph by an inverted file: each row is compared with the rows of the cells nearest to it."""
    n = len(embeddings)
    centers = _centers(embeddings, seed)
    probes, recall = _measure(embeddings, centers, width, seed)
    logger.info("Neighbor graph of %d rows: %d of %d cells a row, recall %.3f", n, probes, len(centers), recall)
    near_cells = np.empty((n, probes), cell_type(len(centers)))

    def ask(start: int) -> None:
        near_cells[start : start + QUERIES] = top_k(centers, embeddings[start : start + QUERIES], probes)[1]

    in_threads(ask, range(0, n, QUERIES))
    indices, similarities = nearest_in_cells(embeddings, near_cells, width)
    return NeighborGraph(indices, similarities, _horizon(similarities, n), recall)


def _centers(embeddings: np.ndarray, seed: int) -> np.ndarray:
    """Cell centers (c, d) by spherical k-means on a sample."""
    n, d = embeddings.shape
    count = max(1, n // ROWS_PER_CELL)
    sample = np.random.default_rng(seed).choice(n, min(n, count * TRAINING_ROWS_PER_CELL), replace=False)
    kmeans = faiss.Kmeans(d, count, niter=TRAINING_ROUNDS, seed=seed, spherical=True, min_points_per_centroid=1)
    kmeans.train(_matrix(embeddings[np.sort(sample)]))
    return np.ascontiguousarray(kmeans.centroids)


def _measure(embeddings: np.ndarray, centers: np.ndarray, width: int, seed: int) -> tuple[int, float]:
    """The fewest cells that hold `MIN_RECALL` of the exact neighbors of a sample, and the share they hold.

    Where even the most cells allowed hold less (rows without any structure), the most are taken.
    """
    n = len(embeddings)
    sample = np.random.default_rng(seed + 1).choice(n, min(n, SAMPLE_ROWS), replace=False)
    queries = _matrix(embeddings[sample])
    best, rows = [], []
    for start in range(0, n, BLOCK):
        cosines, found = top_k(embeddings[start : start + BLOCK], queries, width + 1)
        # The row itself goes behind all others, by its number, as its duplicates may stand before it.
        best.append(np.where(start + found == sample[:, None], np.float32(-np.inf), rounded(cosines)))
        rows.append(start + found)
    exact = _ordered(np.hstack(rows), np.hstack(best))[0][:, :width]
    asked = top_k(centers, embeddings[sample], MAX_PROBES)[1]
    own = top_k(centers, embeddings[exact.ravel()], 1)[1].reshape(exact.shape)
    reached = (asked[:, None, :] == own[:, :, None]).mean(axis=(0, 1)).cumsum()
    enough = np.flatnonzero(reached >= MIN_RECALL)
    probes = int(enough[0]) + 1 if len(enough) else asked.shape[1]
    return probes, float(reached[probes - 1])


def _ordered(indices: np.ndarray, similarities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbors by similarity, highest first, then by row number; holes last."""
    order = np.lexsort((indices, -similarities, indices < 0), axis=1)
    ordered = np.take_along_axis(indices, order, axis=1).astype(np.int32)
    return ordered, np.take_along_axis(similarities, order, axis=1)


def _horizon(similarities: np.ndarray, n: int) -> np.ndarray:
    if similarities.shape[1] >= n - 1:
        return np.full(n, NO_HORIZON, np.float32)
    return similarities[:, -1].copy()


def _as_cosines(steps: np.ndarray) -> np.ndarray:
    return np.divide(steps, np.float32(STEPS), dtype=np.float32)


def _matrix(embeddings: np.ndarray) -> np.ndarray:
    matrix = np.ascontiguousarray(widened(embeddings))
    if matrix.ndim != 2:
        raise ValueError(f"Embeddings have shape {matrix.shape}. Expected two dimensions: (rows, width).")
    return matrix
