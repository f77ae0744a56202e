import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.quality_report import FOLDS, MAX_ROWS, auc, distance_floor, folds, learnable_rows, measure
from hf_lmmixup.score_health import ranks


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows):
    values, positive = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if positive.all() or not positive.any():
        with pytest.raises(ValueError, match="rows of both kinds"):
            auc(values, positive)
        return
    won = [(a > b) + (a == b) / 2 for a in values[positive] for b in values[~positive]]
    assert auc(values, positive) == pytest.approx(sum(won) / len(won))


def test_equal_values_share_their_rank():
    assert ranks(np.array([3, 1, 3, 2])).tolist() == [3.5, 1, 3.5, 2]


def test_measure_of_a_judge_that_knows_everything():
    scores = np.array([0, 1, 2, 3, 4, 5] * 10)
    found = measure(np.eye(6)[scores], scores)
    assert found == {"auc": 1.0, "spearman": pytest.approx(1.0), "calibration_error": 0.0}


def test_measure_sees_overconfidence():
    scores = np.array([0, 5] * 50)
    always_high = np.tile(np.eye(6)[5], (100, 1))
    assert measure(always_high, scores)["calibration_error"] == pytest.approx(0.5)


def test_folds_are_runs_of_each_task_type():
    kinds = np.array(["qa"] * 10 + ["cs"] * 5)
    assert folds(kinds).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("scores", "rows"),
    [
        ([5, 0] * 50, 100),
        ([5, 0] * 49, 0),  # too few rows
        ([5] * FOLDS + [0] * 200, 200 + FOLDS),
        ([5] * (FOLDS - 1) + [0] * 200, 0),  # a fold could be without high scores
        ([5, 0] * MAX_ROWS, MAX_ROWS),  # thinned out
    ],
)
def test_rows_that_a_head_learns_from(scores, rows):
    found = learnable_rows(np.array(scores))
    assert len(found) == rows and (np.diff(found) > 0).all()


def test_the_floor_is_half_of_what_other_subjects_reach():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(200, 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    kinds = np.array(["qa"] * 200)
    number = folds(kinds)
    closest = [max(embeddings[row] @ other for other in embeddings[number != number[row]]) for row in range(200)]
    assert distance_floor(embeddings.astype(np.float32), kinds) == pytest.approx(
        np.percentile(closest, 1) / 2, abs=1e-3
    )
    assert distance_floor(embeddings[:50].astype(np.float32), kinds[:50]) == 0.0
