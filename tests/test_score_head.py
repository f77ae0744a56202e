import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.features import BUCKET_WIDTH, FEATURES
from hf_lmmixup.score_head import (
    BUCKET_SCALE,
    CLIP,
    KINDS,
    Design,
    class_probabilities,
    fit_calibration,
    fit_head,
    fit_values,
)


def random_design(rng, rows, width=6):
    embeddings = rng.normal(size=(rows, width))
    return Design(
        rng.normal(size=(rows, len(FEATURES))).astype(np.float32),
        rng.integers(0, 12, size=(rows, BUCKET_WIDTH)).astype(np.uint16),
        (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32),
        np.array([KINDS[number % 5] for number in range(rows)]),
    )


def plain_matrix(design, mean, scale):
    """Every input of the ridge in one wide matrix, row by row."""
    out = np.zeros((len(design), len(FEATURES) + 5 + design.embeddings.shape[1] + 12))
    for row in range(len(design)):
        counts = (design.features[row] - mean[: len(FEATURES)]) / scale
        out[row, : len(FEATURES)] = np.clip(counts, -CLIP, CLIP) / np.sqrt(len(FEATURES))
        out[row, len(FEATURES) + KINDS.index(design.kinds[row])] = 1
        out[row, len(FEATURES) + 5 : -12] = design.embeddings[row] - mean[len(FEATURES) :]
        filled = [bucket for bucket in design.buckets[row].tolist() if bucket]
        for bucket in filled:
            out[row, -12 + bucket] += BUCKET_SCALE / np.sqrt(len(filled))
    return out


@pytest.mark.parametrize("penalty", [300.0, 10.0])
def test_the_head_is_the_ridge_of_the_textbook(penalty):
    rng = np.random.default_rng(0)
    design, scores = random_design(rng, 80), rng.integers(0, 6, 80)
    head = fit_head(design, scores, penalty, (np.zeros(5), np.ones(5)))
    x = plain_matrix(design, head.mean, head.scale)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (scores - scores.mean()))
    np.testing.assert_allclose(head.value(design), x @ weights + scores.mean(), atol=1e-4)


def test_values_for_unseen_rows_are_those_of_a_head():
    rng = np.random.default_rng(1)
    design, scores = random_design(rng, 60), rng.integers(0, 6, 60)
    seen, unseen = np.arange(40), np.arange(40, 60)
    found = fit_values(design.take(seen), scores[seen], design.take(unseen))
    head = fit_head(design.take(seen), scores[seen], 30.0, (np.zeros(5), np.ones(5)))
    np.testing.assert_allclose(found[30.0], head.value(design.take(unseen)), atol=1e-8)


def test_calibration_finds_the_curves_it_was_drawn_from():
    rng = np.random.default_rng(2)
    values = rng.normal(2, 1.5, 20_000)
    true_thresholds, true_slopes = np.array([-1.0, -2.0, -3.0, -5.0, -6.0]), np.full(5, 1.5)
    steps = rng.random((20_000, 1)) < 1 / (1 + np.exp(-(true_thresholds + true_slopes * values[:, None])))
    thresholds, slopes = fit_calibration(values, steps.sum(1))
    np.testing.assert_allclose(thresholds, true_thresholds, atol=0.25)
    np.testing.assert_allclose(slopes, true_slopes, atol=0.12)


def test_calibration_never_turns_a_bad_head_upside_down():
    values = np.linspace(0, 5, 200)
    thresholds, slopes = fit_calibration(values, 5 - np.floor(values).clip(0, 5).astype(int))
    assert (slopes == 0).all() and np.isfinite(thresholds).all()


def test_a_class_without_rows_keeps_finite_odds():
    thresholds, slopes = fit_calibration(np.linspace(0, 1, 50), np.array([3] * 25 + [4] * 25))
    assert np.isfinite(thresholds).all() and np.isfinite(slopes).all()


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5),
    st.lists(st.floats(-20, 20), min_size=5, max_size=5),
    st.lists(st.floats(0, 20), min_size=5, max_size=5),
)
def test_class_probabilities_are_probabilities(values, thresholds, slopes):
    found = class_probabilities(np.array(values), np.array(thresholds), np.array(slopes))
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1)
