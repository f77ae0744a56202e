"""Bootstrap intervals: against a plain loop, and that pairing sees what separate intervals cannot."""

import numpy as np
import pytest

from hf_lmmixup.intervals import differences, intervals


def test_a_plain_loop_gives_the_same_interval():
    scores = {"a": np.random.default_rng(1).normal(size=(3, 20)), "b": np.random.default_rng(2).normal(size=(3, 20))}
    rng, drawn = np.random.default_rng(5), []
    for _ in range(200):
        seeds, items = rng.integers(3, size=3), rng.integers(20, size=20)
        total = 0.0
        for seed in seeds:
            for item in items:
                total += scores["a"][seed, item]
        drawn.append(total / 60)
    low, high = np.percentile(drawn, [2.5, 97.5])
    found = intervals(scores, draws=200, seed=5)["a"]
    assert (found.mean, found.low, found.high) == pytest.approx((scores["a"].mean(), low, high))


def test_pairing_sees_a_small_gain_on_items_of_very_different_difficulty():
    difficulty = np.linspace(-10, 10, 40)
    scores = {"raw": np.tile(difficulty, (3, 1)), "distilled": np.tile(difficulty + 0.1, (3, 1))}
    alone = intervals(scores)
    assert alone["raw"].high > alone["distilled"].low  # the intervals overlap widely
    found = differences(scores, baseline="raw")
    assert list(found) == ["distilled"]
    assert (found["distilled"].low, found["distilled"].high) == pytest.approx((0.1, 0.1))


def test_items_that_were_not_judged_count_nowhere():
    scores = {"a": np.array([[1.0, np.nan, 1.0]]), "b": np.array([[0.0, 0.0, np.nan]])}
    assert intervals(scores)["a"].mean == 1.0
    assert differences(scores, baseline="b")["a"].mean == 1.0


WRONG = [  # scores, baseline, what the message says
    ({"a": np.zeros((1, 2)), "b": np.zeros((1, 3))}, "a", "one shape"),
    ({"a": np.zeros(3), "b": np.zeros(3)}, "a", "one shape"),
    ({"a": np.full((1, 2), np.nan), "b": np.zeros((1, 2))}, "b", "'a' has no score at all"),
    ({"a": np.zeros((1, 2))}, "raw", "baseline='raw' is no system"),
]


@pytest.mark.parametrize(("scores", "baseline", "message"), WRONG, ids=[row[2] for row in WRONG])
def test_what_cannot_be_compared(scores, baseline, message):
    with pytest.raises(ValueError, match=message):
        differences(scores, baseline=baseline)
