import faiss
import numpy as np
import pytest

from hf_lmmixup import exact_search
from hf_lmmixup.exact_search import axes, bounded, nearest_of_all, search
from hf_lmmixup.nearest import STEPS


def drawn(n, d, decay, seed=0):
    """Unit rows whose directions matter less and less, by a power of their number; a third of them in tight groups."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -decay
    grouped = n // 3
    rows[:grouped] = rows[:grouped][rng.integers(0, grouped // 4, grouped)] + 0.02 * rng.normal(size=(grouped, d))
    rows = rows @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def check(rows, k):
    """The neighbors are those that a sorted matrix of all cosines has, up to the rounding of the cosines."""
    plain = rows @ rows.T
    np.fill_diagonal(plain, -2)
    indices, cosines = nearest_of_all(rows, k)
    np.testing.assert_allclose(cosines, -np.sort(-plain, axis=1)[:, :k], atol=1 / STEPS)
    np.testing.assert_allclose(np.take_along_axis(plain, indices, axis=1), cosines, atol=1 / STEPS)
    assert all(len(set(found)) == k for found in indices.tolist())
    ties = cosines[:, 1:] == cosines[:, :-1]
    assert (cosines[:, 1:] <= cosines[:, :-1]).all() and (indices[:, 1:] > indices[:, :-1])[ties].all()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(exact_search, "BLOCK", 100)
    monkeypatch.setattr(exact_search, "BOUNDS_FROM", 0)


@pytest.mark.parametrize(
    ("decay", "pays"),
    [
        # embeddings of texts: a quarter of the directions carry most
        (1.0, True),
        # without structure every bound is loose
        (0.0, False),
    ],
)
def test_bounds_change_nothing_but_the_work(decay, pays):
    rows = drawn(3000, 384, decay)
    assert (exact_search._bounds(rows, 8) is not rows) == pays
    check(rows, 8)


@pytest.mark.parametrize("width", [1, 6, 24, 47])
def test_exact_whatever_the_width(width, monkeypatch):
    """Even one that is far too small."""
    rows = drawn(900, 48, 0.5)
    monkeypatch.setattr(exact_search, "_bounds", lambda rows, k: bounded(rows, axes(rows), width))
    check(rows, 5)


@pytest.mark.parametrize(
    ("n", "k"),
    [
        # one block, and one row more
        (100, 3),
        (101, 3),
        # the last rows to compare with are a few
        (205, 7),
        # more neighbors than a block has rows
        (700, 300),
        # all others
        (40, 39),
    ],
)
def test_any_number_of_rows_and_neighbors(n, k):
    check(drawn(n, 16, 0.5, seed=n), k)


def test_any_number_of_threads_finds_the_same():
    rows = drawn(2000, 32, 1.0)
    before, found = faiss.omp_get_max_threads(), []
    try:
        for threads in (1, 2, 5):
            faiss.omp_set_num_threads(threads)
            found.append(nearest_of_all(rows, 12))
    finally:
        faiss.omp_set_num_threads(before)
    assert all((indices == found[0][0]).all() and (cosines == found[0][1]).all() for indices, cosines in found[1:])


def test_the_bound_is_a_bound():
    rows = drawn(300, 20, 0.7)
    for width in (1, 5, 19):
        bounds = bounded(rows, axes(rows), width)
        assert (bounds @ bounds.T >= rows @ rows.T - 1e-6).all()


def test_zeros_and_duplicates():
    rows = drawn(1200, 16, 1.0)
    rows[:600] = rows[0]
    rows[600:700] = 0
    check(rows, 3)


def test_search_takes_few_queries_and_many():
    rows = drawn(500, 16, 0.5)
    for m in (1, 19, 20, 400):
        cosines, found = search(rows, rows[:m], 3)
        assert (found[:, 0] == np.arange(m)).mean() > 0.6  # the others are one of a group of near-equals
        np.testing.assert_allclose(cosines, -np.sort(-(rows[:m] @ rows.T), axis=1)[:, :3], atol=1e-5)
