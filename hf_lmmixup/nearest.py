"""The k most similar other rows that each row has met so far.

Whoever compares rows with rows, block by block, needs almost none of the cosines: only those above the bar of a row,
the worst of its k best so far, change anything. `Nearest` keeps the bars and takes what lies above them. What a row
has found is k numbers that sort as neighbors do, by cosine and then by row::

    cosine 0.5 to row 7  ->  16,384 << 32 | 2**32 - 1 - 7

so the result depends neither on the order in which neighbors come nor on how many threads bring them.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
from threadpoolctl import threadpool_limits


STEPS = 32_767
"""Similarities are rounded to multiples of 1 / 32,767. Two bytes hold them, like half-precision floats, whose steps
near 1 are sixteen times wider and would mix up near-duplicates; and a cosine's last bits, which depend on where in a
matrix its row stood, are gone."""

NOTHING = -(1 << 62)
"""Below every neighbor."""

LAST_ROW = (1 << 32) - 1

MAX_THREADS = 16

BLOCK = 16_384
"""Rows whose neighbors are unpacked at a time."""


class Nearest:
    """The best neighbors of every row so far.

    Args:
        n: Number of rows.
        k: Neighbors kept of each.

    Attributes:
        bars: No cosine below it can be among a row's neighbors (n,), float32.
    """

    def __init__(self, n: int, k: int) -> None:
        self.k = k
        self.bars = np.full(n, -np.inf, np.float32)
        self._found = np.full((n, k), NOTHING, np.int64)
        self._worst = np.full(n, NOTHING, np.int64)

    def first_bars(self, cosines: np.ndarray) -> np.ndarray:
        """Bars (m,) of rows that have found nobody so far and meet some others.

        Args:
            cosines: How similar those are (m, size); a row may be among them itself.
        """
        place = cosines.shape[1] - self.k - 1  # of the best but k: one of those may be the row itself
        if place < 0:
            return np.full(len(cosines), -np.inf, np.float32)
        # What rounds to the same step or to a higher one is less than a step below.
        bars: np.ndarray = np.partition(cosines, place, axis=1)[:, place] - np.float32(1.01 / STEPS)
        return bars

    def offer(self, rows: np.ndarray, others: np.ndarray, cosines: np.ndarray) -> None:
        """Let better neighbors take the place of worse ones; each pair of rows is offered once.

        Args:
            rows: Row numbers (p,), in any order.
            others: Whom they met (p,); a row is not its own neighbor.
            cosines: How similar they are (p,).
        """
        names = _names(rows, others, cosines)
        better = np.flatnonzero(names > self._worst[rows])  # not all: duplicates are as similar and no better
        better = better[np.argsort(rows[better], kind="stable")]
        rows, names = rows[better], names[better]
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        counts = np.diff(starts, append=len(rows))
        many = counts > self.k
        for some in np.flatnonzero(~many), np.flatnonzero(many):  # apart, as each matrix is as wide as its widest row
            span = np.arange(counts[some].max(initial=0))
            new = names.take(starts[some, None] + span, mode="clip")
            new[span >= counts[some, None]] = NOTHING
            self._keep(rows[starts[some]], new)

    def _keep(self, rows: np.ndarray, names: np.ndarray) -> None:
        """Leave the k best of what distinct rows (m,) had and what is new to them (m, size)."""
        both = np.hstack([self._found.take(rows, axis=0), names])
        both.partition(names.shape[1], axis=1)
        self._found[rows] = both[:, -self.k :]
        worst = both[:, names.shape[1]]
        self._worst[rows] = worst
        # A little below the middle between two steps, for what rounding does to the products.
        self.bars[rows] = np.where(worst == NOTHING, -np.inf, ((worst >> 32) - 0.51) / STEPS)

    def neighbors(self) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (n, k) int32, most similar first, and their cosines (n, k) float32.

        Cosines are rounded, equal ones stand by ascending row number; -1 and -1 where a row has met fewer. They take
        the place of what was found, so this ends the search.
        """
        indices, similarities = self._found.view(np.int32)[:, : self.k], self._found.view(np.float32)[:, self.k :]

        def unpack(start: int) -> None:
            part = slice(start, start + BLOCK)
            found = np.sort(self._found[part], axis=1)[:, ::-1]
            holes = found == NOTHING
            indices[part] = np.where(holes, -1, LAST_ROW - (found & LAST_ROW))
            similarities[part] = np.where(holes, -1, (found >> 32) / STEPS)

        in_threads(unpack, range(0, len(indices), BLOCK))
        return indices, similarities


def _names(rows: np.ndarray, others: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """What sorts as neighbors do, for each cosine."""
    steps = np.rint(cosines.clip(-1, 1) * STEPS).astype(np.int64)
    return np.where(others == rows, NOTHING, steps << 32 | LAST_ROW - others)


def threads() -> int:
    """How many threads may work; `OMP_NUM_THREADS` bounds them."""
    return int(min(faiss.omp_get_max_threads(), MAX_THREADS))


def in_threads(work: Callable[[int], None], parts: Iterable[int]) -> None:
    """Do the parts of some work, several at a time, each on a single thread.

    A matrix product shares its rows among threads of its own, for which all that call one wait in turn. In here it
    has none but the calling thread.
    """
    count = threads()

    def alone(part: int) -> None:
        faiss.omp_set_num_threads(1)  # of this thread
        work(part)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(count) as pool:
        list(pool.map(alone, parts))
