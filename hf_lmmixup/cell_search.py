"""The k most similar rows of every row among the rows of the cells near to it.

A cell is compared with all rows that ask for it in one matrix product. Almost no pair of the product matters: a row
keeps the k best so far, and only what beats the worst of them is taken out. The cells nearest to a row come first,
so the bar is high early. What a row has found is k numbers that sort as the neighbors do, by cosine and then by row::

    cosine 0.5 to row 7  ->  16,384 << 32 | 2**32 - 1 - 7

Each thread has rows of its own and finds the same whatever their number.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np


STEPS = 32_767
"""Similarities are rounded to multiples of 1 / 32,767. Two bytes hold them, like half-precision floats, whose steps
near 1 are sixteen times wider and would mix up near-duplicates; and a cosine's last bits, which depend on where in a
matrix its row stood, are gone."""

NOTHING = -(1 << 62)
"""Below every neighbor."""

LAST_ROW = (1 << 32) - 1

BLOCK = 2048
"""Rows compared with a cell at a time: with a cell of 256 rows the product has 2 MB and stays in the cache."""

MAX_THREADS = 16


def nearest_in_cells(embeddings: np.ndarray, near_cells: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other rows of every row in its cells.

    Args:
        embeddings: Unit rows (n, d), float32 or float16.
        near_cells: Cells of each row (n, p), the nearest first; a row lies in its first one.
        k: How many.

    Returns:
        Row numbers (n, k) int32, most similar first, equal similarities by ascending row number, and their rounded
        cosines (n, k) float32. -1 and -1 where the cells hold fewer rows.
    """
    n = len(embeddings)
    found = np.full((n, k), NOTHING, np.int64)
    # Above everything, below what is rounded to the worst neighbor of a row.
    bars = np.full(n, -np.inf, np.float32)
    members, bounds = by_cell(near_cells[:, 0], int(near_cells.max(initial=0)) + 1)
    cells = [members[begin:end] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
    threads = min(faiss.omp_get_max_threads(), MAX_THREADS)
    edges = np.linspace(0, n, threads + 1).astype(np.int64)

    def work(begin: int, end: int) -> None:
        faiss.omp_set_num_threads(1)  # of this thread
        for cell, rows in _visits(near_cells[begin:end], len(cells)):
            product = _product(embeddings[cells[cell]])
            for start in range(0, len(rows), BLOCK):
                _visit(found, bars, begin + rows[start : start + BLOCK], cells[cell], product, embeddings)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, edges[:-1].tolist(), edges[1:].tolist()))
    found.sort(axis=1)
    found = found[:, ::-1]
    holes = found == NOTHING
    indices = np.where(holes, -1, LAST_ROW - (found & LAST_ROW)).astype(np.int32)
    return indices, np.where(holes, -1, (found >> 32) / STEPS).astype(np.float32)


def by_cell(cells: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in order of their cell, and where each of the `count` cells begins and ends (count + 1,)."""
    small = cells.astype(np.uint16) if count <= 1 << 16 else cells  # NumPy sorts two bytes in linear time
    order = np.argsort(small, kind="stable")
    return order, np.searchsorted(cells[order], np.arange(count + 1))


def _visits(near_cells: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Cells and the rows that ask for them: each row's own cell first, then the next one, two, four and so on."""
    begin, probes = 0, near_cells.shape[1]
    while begin < probes:
        end = min(max(1, 2 * begin), probes)
        places, bounds = by_cell(near_cells[:, begin:end].ravel(), count)
        for cell in np.flatnonzero(np.diff(bounds)).tolist():
            yield cell, places[bounds[cell] : bounds[cell + 1]] // (end - begin)
        begin = end


def _product(cell: np.ndarray) -> faiss.LinearTransform:
    """Inner products with the rows of a cell. NumPy's would take threads of their own, which this thread waits for."""
    rows = np.ascontiguousarray(cell, np.float32)
    product = faiss.LinearTransform(rows.shape[1], len(rows))
    faiss.copy_array_to_vector(rows.ravel(), product.A)
    product.is_trained = True
    return product


def _visit(
    found: np.ndarray,
    bars: np.ndarray,
    rows: np.ndarray,
    cell: np.ndarray,
    product: faiss.LinearTransform,
    embeddings: np.ndarray,
) -> None:
    """Compare some rows with those of a cell and let what is better take its place, in place."""
    k, size = found.shape[1], len(cell)
    cosines = product.apply(embeddings.take(rows, axis=0).astype(np.float32, copy=False))
    bar = bars[rows]
    new = np.flatnonzero(np.isneginf(bar))
    if len(new) and size > k + 1:  # k other rows of this cell, and the row itself
        bar[new] = np.partition(cosines[new], size - k - 1, axis=1)[:, size - k - 1] - 1 / STEPS
    better = np.flatnonzero(cosines >= bar[:, None])
    row, other = better // size, cell[better % size]
    steps = np.rint(cosines.ravel()[better].clip(-1, 1) * STEPS).astype(np.int64)
    names = np.where(other == rows[row], NOTHING, steps << 32 | LAST_ROW - other)
    counts = np.bincount(row, minlength=len(rows))
    changed = np.flatnonzero(counts)
    if not len(changed):
        return
    counts = counts[changed]
    both = np.full((len(changed), k + counts.max()), NOTHING)
    both[:, :k] = found.take(rows[changed], axis=0)
    first = np.cumsum(counts) - counts
    both[np.repeat(np.arange(len(changed)), counts), k + np.arange(len(row)) - np.repeat(first, counts)] = names
    both.partition(both.shape[1] - k, axis=1)
    found[rows[changed]] = both[:, -k:]
    # A little below the middle between two steps, for what rounding does to the product.
    worst = both[:, -k]
    bars[rows[changed]] = np.where(worst == NOTHING, -np.inf, ((worst >> 32) - 0.51) / STEPS)
