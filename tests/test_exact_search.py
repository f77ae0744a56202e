import numpy as np
import pytest

from hf_lmmixup import exact_search
from hf_lmmixup.exact_search import search, search_all


def drawn(n, d, decay, seed=0):
    """Unit rows whose directions matter less and less, by a power of their number; a third of them in tight groups."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -decay
    grouped = n // 3
    rows[:grouped] = rows[:grouped][rng.integers(0, grouped // 4, grouped)] + 0.02 * rng.normal(size=(grouped, d))
    rows = rows @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("decay", "pays"),
    [
        # embeddings of texts: a quarter of the directions carry most
        (1.0, True),
        # without structure every bound is loose
        (0.0, False),
    ],
)
def test_bounds_change_nothing_but_the_work(decay, pays, monkeypatch):
    monkeypatch.setattr(exact_search, "BOUNDED_FROM", 1)
    rows = drawn(3000, 48, decay)
    assert (exact_search._bound_width(rows, 8) is not None) == pays
    plain = rows @ rows.T
    cosines, found = search_all(rows, 8)
    np.testing.assert_allclose(cosines, -np.sort(-plain, axis=1)[:, :8], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(plain, found, axis=1), cosines, atol=1e-5)


@pytest.mark.parametrize("width", [1, 6, 24, 47])
def test_rows_that_the_bound_leaves_open_are_searched_in_full(width, monkeypatch):
    """Whatever the width, even one that is far too small, the answer is exact."""
    monkeypatch.setattr(exact_search, "BOUNDED_FROM", 1)
    monkeypatch.setattr(exact_search, "_bound_width", lambda rows, k: width)
    monkeypatch.setattr(exact_search, "SPARE", 4)
    rows = drawn(900, 48, 0.5)
    np.testing.assert_allclose(search_all(rows, 5)[0], -np.sort(-(rows @ rows.T), axis=1)[:, :5], atol=1e-5)


def test_the_bound_is_a_bound():
    rows = drawn(300, 20, 0.7)
    for width in (1, 5, 19):
        bounded = exact_search._bounded(rows, exact_search._axes(rows), width)
        assert (bounded @ bounded.T >= rows @ rows.T - 1e-6).all()


def test_zeros_and_duplicates(monkeypatch):
    monkeypatch.setattr(exact_search, "BOUNDED_FROM", 1)
    rows = drawn(1200, 16, 1.0)
    rows[:600] = rows[0]
    rows[600:700] = 0
    np.testing.assert_allclose(search_all(rows, 3)[0], -np.sort(-(rows @ rows.T), axis=1)[:, :3], atol=1e-5)


def test_search_takes_few_queries_and_many():
    rows = drawn(500, 16, 0.5)
    for m in (1, 19, 20, 400):
        cosines, found = search(rows, rows[:m], 3)
        assert (found[:, 0] == np.arange(m)).mean() > 0.6  # the others are one of a group of near-equals
        np.testing.assert_allclose(cosines, -np.sort(-(rows[:m] @ rows.T), axis=1)[:, :3], atol=1e-5)
