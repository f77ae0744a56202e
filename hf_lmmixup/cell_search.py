"""The k most similar rows of every row among the rows of the cells near to it.

A cell is compared with all rows that ask for it in one matrix product. The cells nearest to a row come first, so its
bar (`nearest.Nearest`) is high early and little of what follows matters. A row asks for its own cell and some more::

    near_cells[0] = [17, 4, 9]
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from hf_lmmixup.half_precision import widened
from hf_lmmixup.nearest import Nearest, in_threads, threads


BLOCK = 2048
"""Rows compared with a cell at a time: with a cell of 256 rows the product has 2 MB and stays in the cache."""

VISITS = 8
"""Cells after which a thread hands over what it found: threads that often do small things wait for each other."""

MOST_PAIRS = 1 << 20
"""Pairs of rows after which a thread hands over in any case: of equal rows in one cell all are above the bars."""

FIRST_CELLS = (1, 16)
"""Cells of a row that are done before the next ones: its own, then the nearest. More steps would raise the bars a
little earlier, but each is a pass over all cells, and threads that ask for little at a time wait for each other."""


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
    embeddings, nearest = np.asarray(embeddings), Nearest(len(embeddings), k)
    members, bounds = by_cell(near_cells[:, 0], int(near_cells.max(initial=0)) + 1)
    edges = np.linspace(0, len(embeddings), threads() + 1).astype(np.int64)

    def vectors(rows: np.ndarray) -> np.ndarray:
        return widened(embeddings.take(rows, axis=0))

    def work(part: int) -> None:
        # Each thread has rows of its own, those of some cells.
        mine = members[edges[part] : edges[part + 1]]
        met: list[tuple[np.ndarray, ...]] = []

        def hand_over(is_due: bool) -> None:
            if met and is_due:
                nearest.offer(*map(np.concatenate, zip(*met, strict=True)))
                met.clear()

        for cell, asking in _visits(near_cells, mine, len(bounds) - 1):
            for first in range(bounds[cell], bounds[cell + 1], BLOCK):  # one in all but the strangest data
                some = members[first : min(first + BLOCK, bounds[cell + 1])]
                inside = vectors(some).T
                for start in range(0, len(asking), BLOCK):
                    rows = mine[asking[start : start + BLOCK]]
                    cosines = vectors(rows) @ inside
                    bars = nearest.bars[rows]
                    if (new := np.isneginf(bars)).any():
                        bars[new] = nearest.first_bars(cosines[new])
                    better = np.flatnonzero(cosines >= bars[:, None])
                    place, other = np.divmod(better, len(some))
                    met.append((rows[place], some[other], cosines.ravel()[better]))
                    hand_over(sum(len(places) for places, _, _ in met) > MOST_PAIRS)
            hand_over(len(met) >= VISITS)
        hand_over(True)

    in_threads(work, range(len(edges) - 1))
    return nearest.neighbors()


def by_cell(cells: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in order of their cell, and where each of the `count` cells begins and ends (count + 1,)."""
    small = cells.astype(cell_type(count), copy=False)
    order = np.argsort(small, kind="stable")
    # Cell numbers of the same type: for another one NumPy would first widen all of `small`.
    return order, np.append(np.searchsorted(small[order], np.arange(count, dtype=small.dtype)), len(order))


def cell_type(count: int) -> type[np.integer[Any]]:
    """What holds the numbers of `count` cells: two bytes if they can, which NumPy also sorts in linear time."""
    return np.uint16 if count <= 1 << 16 else np.int32


def _visits(near_cells: np.ndarray, rows: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Cells and which of the rows ask for them: each row's own cell first, then the nearest, then the others."""
    probes = near_cells.shape[1]
    ends = [*(end for end in FIRST_CELLS if end < probes), probes]
    for begin, end in pairwise([0, *ends]):
        places, bounds = by_cell(near_cells[rows, begin:end].ravel(), count)
        for cell in np.flatnonzero(np.diff(bounds)).tolist():
            yield cell, places[bounds[cell] : bounds[cell + 1]] // (end - begin)
