"""The map of clusters: directions of greatest variance, whole clusters, equal maps for equal rows."""

import numpy as np
import pytest

from hf_lmmixup.projection import map_points, principal_axes


def rows(numbers, text="q"):
    return [{"cluster_id": number, "score": 1, "prompt": f"{text}{place}"} for place, number in enumerate(numbers)]


def vectors(count, width=6, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def test_axes_are_those_of_greatest_variance():
    points = vectors(400) * np.array([0.1, 9, 0.1, 4, 0.1, 0.1])
    axes = principal_axes(points)
    assert np.allclose(np.abs(axes[[1, 3], [0, 1]]), 1, atol=0.02)  # the second column first, then the fourth
    assert np.allclose(axes.T @ axes, np.eye(2), atol=1e-9)
    assert (axes[[1, 3], [0, 1]] > 0).all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_rows(count):
    points = map_points(rows(range(count)), vectors(count), rows(range(count)), vectors(count))
    assert len(points["x"]) == 2 * count and np.isfinite(points["x"]).all()


def test_rows_without_a_cluster_are_left_out():
    points = map_points(rows([0, None, 0]), vectors(3), rows([0]), vectors(1))
    assert points["kind"] == ["source", "source", "distilled"]
    assert points["text"] == ["q0", "q2", "q0"]


def test_the_limit_leaves_out_whole_clusters():
    numbers = [place // 4 for place in range(400)]
    points = map_points(rows(numbers), vectors(400), rows(range(100)), vectors(100), limit=200)
    assert len(points["x"]) <= 200
    shown = set(points["cluster"])
    assert all(points["cluster"].count(number) == 5 for number in shown)  # four sources and their distillation
    assert max(shown) > 80  # from everywhere, not only the first


def test_equal_rows_give_an_equal_map():
    first, second = (map_points(rows([0, 0, 1, 1]), vectors(4), rows([0, 1]), vectors(2)) for _ in range(2))
    assert first == second
