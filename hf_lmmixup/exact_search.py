"""The k most similar rows of every row, exactly, with a part of the arithmetic.

All pairs of rows are compared once, block by block, for both rows of each pair; from the first block on, a row needs
only what beats its k best so far (`nearest.Nearest`).

Embeddings of texts vary mostly along few directions. On the first p principal axes, with what lies beyond them only
measured by its length, the cosine of two unit rows has an upper bound (Cauchy-Schwarz)::

    x . y  <=  x_p . y_p + |x_rest| |y_rest|

which is itself an inner product of p + 1 numbers, (x_p, |x_rest|) . (y_p, |y_rest|). So bounds are compared instead of
cosines, and the true cosine is computed only where the bound beats what a row has found.

p is chosen by trying bounds on a sample; where they do not pay (rows without structure) cosines are compared.
"""

from threading import Lock

import faiss
import numpy as np

from hf_lmmixup.nearest import Nearest, in_threads


# FAISS compares a block of under 128,000 / d queries vector by vector. Measured with 256 queries, d = 384 and 16,384
# rows on one core: 13 GFLOP/s, against 117 as a matrix product. Below 20 queries the former is the faster one.
faiss.cvar.distance_compute_blas_threshold = 20

BOUNDS_FROM = 16_384
"""Row count from which it pays to try bounds."""

BLOCK = 832
"""Rows of a block: the product of two has under 3 MB and stays in the cache."""

SAMPLE_ROWS, SAMPLE_OTHERS = 256, 4096
FRACTIONS = (1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2)
"""Widths tried, as parts of the whole width."""

PER_AXIS, PER_RIVAL = 1 / 60, 120.0
"""Nanoseconds of one core for one axis of a pair's product, and for a true cosine with what follows from it; only
their ratio matters. Comparing a product with two bars takes 0.6 in any width."""

MARGIN = 1e-5
"""Rounding of single-precision inner products; a bound counts only by more than this."""


def search(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Inner products (m, k) and row numbers (m, k) of the k <= n rows nearest to each query, float32 input."""
    cosines, found = faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)
    return cosines, found


def nearest_of_all(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other rows of every row.

    Args:
        rows: Unit rows (n, d), float32, contiguous.
        k: How many, under n.

    Returns:
        Row numbers (n, k) int32, most similar first, equal similarities by ascending row number, and their rounded
        cosines (n, k) float32.
    """
    n, nearest = len(rows), Nearest(len(rows), k)
    bounds = _bounds(rows, k)
    lock = Lock()

    def within(start: int) -> None:
        block = rows[start : start + BLOCK]
        cosines = block @ block.T
        one, other = np.nonzero(cosines >= nearest.first_bars(cosines)[:, None])
        nearest.offer(start + one, start + other, cosines[one, other])

    def beyond(start: int) -> None:
        block = bounds[start : start + BLOCK]
        transposed, products = np.ascontiguousarray(block.T), np.empty((BLOCK, len(block)), np.float32)
        for begin in range(start + BLOCK, n, BLOCK):
            queries = bounds[begin : begin + BLOCK]
            highest = np.matmul(queries, transposed, out=products[: len(queries)])
            beats = highest >= nearest.bars[begin : begin + BLOCK, None]
            beats |= highest >= nearest.bars[start : start + BLOCK]
            query, place = np.divmod(np.flatnonzero(beats), len(block))
            cosines = highest[query, place] if bounds is rows else _cosines(rows, begin + query, start + place)
            one, other = np.append(begin + query, start + place), np.append(start + place, begin + query)
            with lock:
                nearest.offer(one, other, np.append(cosines, cosines))

    in_threads(within, range(0, n, BLOCK))
    in_threads(beyond, range(0, n - BLOCK, BLOCK))
    return nearest.neighbors()


def _bounds(rows: np.ndarray, k: int) -> np.ndarray:
    """Rows (n, p + 1) whose inner products bound the cosines, p such that the whole search is cheapest.

    Where bounds do not pay, these are the rows themselves.
    """
    n, d = rows.shape
    if n < BOUNDS_FROM:
        return rows
    sample = np.linspace(0, n - 1, min(n, SAMPLE_ROWS)).astype(np.int64)
    others = np.linspace(0, n - 1, min(n, SAMPLE_OTHERS)).astype(np.int64)
    lowest = search(rows, rows[sample], min(k + 1, n))[0][:, -1:]
    directions = axes(rows[others])
    best, cost = None, d * PER_AXIS
    for width in (int(d * fraction) for fraction in FRACTIONS):
        highest = bounded(rows[sample], directions, width) @ bounded(rows[others], directions, width).T
        rivals = float((highest > lowest - MARGIN).mean())
        expected = (width + 1) * PER_AXIS + 2 * rivals * PER_RIVAL
        if width and expected < cost:
            best, cost = width, expected
    return rows if best is None else bounded(rows, directions, best)


def axes(rows: np.ndarray) -> np.ndarray:
    """Orthogonal axes (d, d), those along which the rows are longest first."""
    directions: np.ndarray = np.linalg.eigh(rows.T @ rows)[1][:, ::-1]
    return directions


def bounded(rows: np.ndarray, directions: np.ndarray, width: int) -> np.ndarray:
    """(n, width + 1): the rows on the first axes, and the length of what lies beyond them."""
    short = np.empty((len(rows), width + 1), np.float32)
    np.matmul(rows, np.ascontiguousarray(directions[:, :width]), out=short[:, :width])
    squares = np.einsum("nd,nd->n", rows, rows) - np.einsum("nd,nd->n", short[:, :width], short[:, :width])
    short[:, width] = np.sqrt(np.maximum(squares, 0) + MARGIN)
    return short


def _cosines(rows: np.ndarray, some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """True inner products (p,) of pairs of rows."""
    cosines = np.empty(len(some), np.float32)
    pointers = (faiss.swig_ptr(array) for array in (rows, some, rows, others, cosines))
    faiss.pairwise_indexed_inner_product(rows.shape[1], len(some), *pointers)  # type: ignore[attr-defined]
    return cosines
