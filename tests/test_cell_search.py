"""The search in cells against a plain loop over every row and every row of its cells."""

import tracemalloc

import faiss
import numpy as np
import pytest

from hf_lmmixup import cell_search
from hf_lmmixup.cell_search import by_cell, cell_type, nearest_in_cells
from hf_lmmixup.nearest import STEPS


def rows_and_cells(n: int, d: int, cells: int, probes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows with duplicates among them, and distinct cells of each at random."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)).astype(np.float32)
    rows[::7] = rows[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    near = np.argsort(rng.random((n, cells)), axis=1)[:, :probes]
    return rows, near.astype(np.int32)


def plain(rows: np.ndarray, near: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by sorting all candidates of each row."""
    steps = np.rint((rows.astype(np.float32) @ rows.astype(np.float32).T).clip(-1, 1) * STEPS)
    indices, similarities = np.full((len(rows), k), -1), np.full((len(rows), k), -1.0)
    for row in range(len(rows)):
        others = [other for other in range(len(rows)) if other != row and near[other, 0] in near[row]]
        for place, other in enumerate(sorted(others, key=lambda other: (-steps[row, other], other))[:k]):
            indices[row, place], similarities[row, place] = other, steps[row, other] / STEPS
    return indices, similarities


@pytest.mark.parametrize(
    ("n", "d", "cells", "probes", "k"),
    [
        (300, 8, 5, 3, 10),  # many more candidates than neighbors
        (300, 8, 5, 5, 10),  # every row sees all others
        (60, 4, 20, 2, 8),  # cells hold fewer rows than neighbors are wanted: holes
        (40, 3, 40, 1, 4),  # most rows are alone
        (500, 6, 2, 1, 24),  # one cell each
        (2, 3, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_finds_what_a_plain_loop_finds(n: int, d: int, cells: int, probes: int, k: int, kind: type) -> None:
    rows, near = rows_and_cells(n, d, cells, probes, seed=n)
    indices, similarities = nearest_in_cells(rows.astype(kind), near, k)
    expected, cosines = plain(rows.astype(kind), near, k)
    assert indices.dtype == np.int32 and similarities.dtype == np.float32
    assert np.abs(similarities - cosines).max() <= 1.01 / STEPS
    same = indices == expected
    # A cosine in the middle between two steps may be rounded either way; no more than a few are.
    assert same.mean() > 0.98
    assert ((indices < 0) == (expected < 0)).all()


def test_cells_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, near = rows_and_cells(500, 6, 3, 2, seed=3)
    whole = nearest_in_cells(rows, near, 9)
    monkeypatch.setattr(cell_search, "BLOCK", 50)
    parts = nearest_in_cells(rows, near, 9)
    assert (whole[0] == parts[0]).mean() > 0.98 and np.abs(whole[1] - parts[1]).max() <= 1.01 / STEPS


def test_any_number_of_threads_finds_the_same() -> None:
    rows, near = rows_and_cells(3000, 16, 12, 4, seed=1)
    before = faiss.omp_get_max_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            faiss.omp_set_num_threads(threads)
            found.append(nearest_in_cells(rows, near, 12))
    finally:
        faiss.omp_set_num_threads(before)
    for indices, similarities in found[1:]:
        assert (indices == found[0][0]).all() and (similarities == found[0][1]).all()


def test_equal_rows_in_one_cell_take_little_memory() -> None:
    """Their pairs, of which there are 37 million here, are not in memory all at once."""
    rows = np.tile(np.float32([[0.6, 0.8]]), (6144, 1))
    tracemalloc.start()
    try:
        indices, similarities = nearest_in_cells(rows, np.zeros((6144, 1), np.int32), 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert indices[:2].tolist() == [[1, 2, 3], [0, 2, 3]] and (indices[3:] == [0, 1, 2]).all()
    assert (similarities > 0.999).all() and peak < 500e6


def test_leaves_the_threads_of_the_caller_as_they_are() -> None:
    rows, near = rows_and_cells(100, 4, 3, 2, seed=2)
    before = faiss.omp_get_max_threads()
    nearest_in_cells(rows, near, 3)
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("count", [5, 1 << 16, (1 << 16) + 1])
def test_places_by_cell(count: int) -> None:
    cells = np.array([2, 0, count - 1, 2, 3, 0], cell_type(count))
    order, bounds = by_cell(cells, count)
    assert cells[order].tolist() == sorted(cells.tolist())
    assert [order[bounds[cell] : bounds[cell + 1]].tolist() for cell in (0, 1, 2, 3)] == [[1, 5], [], [0, 3], [4]]
    assert (len(bounds), bounds[-2], bounds[-1]) == (count + 1, 5, 6)
