import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_lmmixup.transition import (
    ScoreTransition,
    class_indices,
    estimate,
    expected_score,
    neighbor_counts,
    posterior,
)


CLASSES = np.arange(6)


def plain_estimate(scores, neighbors, classes):
    """The definition, loop by loop."""
    size = len(classes)
    counts = [[0.01] * size for _ in range(size)]
    for center, row in enumerate(neighbors):
        for neighbor in row:
            if neighbor >= 0:
                counts[list(classes).index(scores[center])][list(classes).index(scores[neighbor])] += 1
    return np.array([[value / sum(row) for value in row] for row in counts])


def plain_posterior(counts, prior, matrix):
    out = []
    for histogram in counts:
        logs = []
        for i in range(len(prior)):
            value = np.log(prior[i] + 1e-12)
            for j, seen in enumerate(histogram):
                value += seen * np.log(matrix[i][j] + 1e-12)
            logs.append(value)
        top = max(logs)
        weights = [np.exp(value - top) for value in logs]
        out.append([weight / sum(weights) for weight in weights])
    return np.array(out)


@settings(deadline=None)
@given(
    hnp.arrays(np.int64, st.integers(2, 30), elements=st.integers(0, 5)).flatmap(
        lambda scores: st.tuples(
            st.just(scores),
            hnp.arrays(np.int64, (len(scores), 3), elements=st.integers(-1, len(scores) - 1)),
        )
    )
)
def test_estimate_equals_a_plain_loop(drawn):
    scores, neighbors = drawn
    transition = estimate(scores, neighbors)
    np.testing.assert_allclose(transition.matrix, plain_estimate(scores, neighbors, CLASSES), rtol=1e-12)
    frequencies = np.array([(scores == c).mean() for c in CLASSES]) + 1e-8
    np.testing.assert_allclose(transition.prior, frequencies / frequencies.sum(), rtol=1e-12)


@settings(deadline=None)
@given(hnp.arrays(np.int64, (7, 6), elements=st.integers(0, 16)), st.integers(0, 1000))
def test_posterior_equals_a_plain_loop(counts, seed):
    rng = np.random.default_rng(seed)
    matrix, prior = rng.dirichlet(np.ones(6), size=6), rng.dirichlet(np.ones(6))
    transition = ScoreTransition(CLASSES, matrix, prior)
    found = posterior(counts, transition)
    np.testing.assert_allclose(found, plain_posterior(counts, prior, matrix), atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_allclose(expected_score(found), [sum(c * p for c, p in enumerate(row)) for row in found])


def test_posterior_of_nothing_is_empty():
    assert posterior(np.zeros((0, 6)), estimate(np.array([1, 2]), np.array([[1], [0]]))).shape == (0, 6)


def test_posterior_survives_counts_that_underflow():
    transition = estimate(np.array([0, 5]), np.array([[0], [1]]))
    found = posterior(np.array([[100_000, 0, 0, 0, 0, 0]]), transition)
    assert found[0, 0] == pytest.approx(1.0)


def test_neighbors_of_a_mixed_row_are_counted_per_class():
    counts = neighbor_counts(np.array([0, 5, 5]), np.array([[0, 1, 2], [1, 1, 2]]), CLASSES)
    assert counts.tolist() == [[1, 0, 0, 0, 0, 2], [0, 0, 0, 0, 0, 3]]


def test_a_score_outside_the_classes_is_named():
    with pytest.raises(ValueError, match="Score 7 is not one of the classes"):
        class_indices(np.array([1, 7]), CLASSES)


@pytest.mark.parametrize(
    ("matrix", "prior", "message"),
    [
        (np.eye(3), np.ones(2) / 2, r"2 classes need a matrix \(2, 2\)"),  # wrong size
        (np.eye(2) * 2, np.ones(2) / 2, "matrix are not probabilities"),  # rows sum to 2
        (np.array([[2.0, -1.0], [0.5, 0.5]]), np.ones(2) / 2, "matrix are not probabilities"),  # negative
        (np.eye(2), np.array([np.nan, 1.0]), "prior are not probabilities"),  # not finite
    ],
)
def test_a_transition_that_is_none_is_refused(matrix, prior, message):
    with pytest.raises(ValueError, match=message):
        ScoreTransition(np.arange(2), matrix, prior)


def test_the_own_row_is_left_out_by_number_so_duplicates_do_not_hide_it():
    """Published code drops the first neighbor, which among duplicates is another row."""
    from hf_lmmixup.neighbors import build_graph

    embeddings = np.tile(np.array([[1.0, 0.0]], np.float32), (4, 1))
    graph = build_graph(embeddings, 3)
    assert all(row not in graph.indices[row] for row in range(4))
