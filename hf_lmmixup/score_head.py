"""A small linear judge of texts: ridge regression on counts, hashed words and the embedding, calibrated to classes.

Neighbors in embedding space share a subject more than a quality, so on unseen subjects they say little about a score.
A linear head on the same embedding plus plain counts does better (see docs/quality.md for the figures). It is a few
thousand numbers: no code is stored and none is run when it is loaded.

One judgement::

    features (28,), buckets (64,), embedding (384,)  ->  posterior [0.00, 0.01, 0.05, 0.14, 0.38, 0.42], expected 4.15
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import numpy as np

from hf_lmmixup.features import BUCKETS, FEATURES
from hf_lmmixup.records import SCORES, TaskType


KINDS = tuple(kind.value for kind in TaskType)
CLIP = 3.0
"""Counts further than this many deviations from the mean say nothing more."""
BUCKET_SCALE = 2.0**0.5
"""Weight of the hashed words against the embedding, which has length 1 (by cross-validation, docs/quality.md)."""
PENALTIES = (300.0, 100.0, 30.0, 10.0, 3.0)
"""Ridge penalties that are tried, strongest first, so that each solution starts from a smoother one."""
ITERATIONS = 40
"""Steps of conjugate gradients; with these penalties the ranking of rows no longer changes after about 25."""
NEWTON_STEPS = 25

_UNCALIBRATED = (np.zeros(len(SCORES) - 1), np.zeros(len(SCORES) - 1))


@dataclass(frozen=True)
class Design:
    """The inputs of a head, row by row.

    Attributes:
        features: `features.text_features` (n, F).
        buckets: `features.word_buckets` (n, W), 0 for padding.
        embeddings: Unit rows (n, d).
        kinds: Task types (n,).
    """

    features: np.ndarray
    buckets: np.ndarray
    embeddings: np.ndarray
    kinds: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The four arrays, in the order in which they are declared."""
        return self.features, self.buckets, self.embeddings, self.kinds

    def take(self, rows: np.ndarray) -> "Design":
        """Some of the rows."""
        return Design(self.features[rows], self.buckets[rows], self.embeddings[rows], self.kinds[rows])


@dataclass(frozen=True)
class ScoreHead:
    """The fitted numbers.

    Attributes:
        mean: What is subtracted from features and embedding (F + d,).
        scale: What the features are divided by (F,).
        dense: Weights of features, task types and embedding (F + 5 + d,).
        words: Weights of the hashed words (BUCKETS,), the first is 0.
        intercept: Mean score (1,).
        thresholds: Log-odds of reaching each class above the lowest, at value 0 (C - 1,).
        slopes: Change of those log-odds per point of the linear value (C - 1,).
    """

    mean: np.ndarray
    scale: np.ndarray
    dense: np.ndarray
    words: np.ndarray
    intercept: np.ndarray
    thresholds: np.ndarray
    slopes: np.ndarray

    def value(self, design: Design) -> np.ndarray:
        """The linear value of each row (n,), in points of score."""
        return _Rows(design, self.mean, self.scale).times(self.dense, self.words) + self.intercept[0]

    def posterior(self, design: Design) -> np.ndarray:
        """Calibrated distribution over the classes (n, C)."""
        return class_probabilities(self.value(design), self.thresholds, self.slopes)

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays by name, float64, as a datastore saves them."""
        return {field.name: np.asarray(getattr(self, field.name), np.float64) for field in fields(self)}


def head_shapes(width: int) -> dict[str, list[int]]:
    """The shape of each array of a head for embeddings of this width."""
    return {
        "mean": [len(FEATURES) + width],
        "scale": [len(FEATURES)],
        "dense": [len(FEATURES) + len(KINDS) + width],
        "words": [BUCKETS],
        "intercept": [1],
        "thresholds": [len(SCORES) - 1],
        "slopes": [len(SCORES) - 1],
    }


def fit_values(design: Design, scores: np.ndarray, queries: Design) -> dict[float, np.ndarray]:
    """For each penalty, the linear values of the queries under a ridge fitted to the design."""
    return {penalty: head.value(queries) for penalty, head in _ridge_path(design, scores, PENALTIES)}


def fit_head(
    design: Design, scores: np.ndarray, penalty: float, calibration: tuple[np.ndarray, np.ndarray]
) -> ScoreHead:
    """Fit the ridge to all rows; the calibration is given, because it must come from rows the ridge had not seen."""
    stronger = [known for known in PENALTIES if known > penalty]
    *_, (_, head) = _ridge_path(design, scores, (*stronger, penalty))
    return ScoreHead(head.mean, head.scale, head.dense, head.words, head.intercept, *calibration)


def fit_calibration(values: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One logistic curve per class: `P(score >= c) = sigmoid(threshold_c + slope_c * value)`.

    One imagined row on either side of each curve keeps the odds finite where a class has no rows.

    Args:
        values: Linear values of rows the ridge had not seen (n,).
        scores: Their scores.

    Returns:
        Thresholds (C - 1,) and slopes (C - 1,).
    """
    x = np.concatenate([values - values.mean(), [0.0, 0.0]])
    design = np.stack([np.ones_like(x), x], axis=1)
    curves = []
    for lowest in SCORES[1:]:
        reached = np.concatenate([scores >= lowest, [1.0, 0.0]])
        curve = np.array([np.log(reached.mean() / (1 - reached.mean())), 1.0])
        for _ in range(NEWTON_STEPS):
            odds = 1 / (1 + np.exp(-np.clip(design @ curve, -50, 50)))
            curvature = (design * (odds * (1 - odds))[:, None]).T @ design + 1e-6 * np.eye(2)
            curve = curve + np.linalg.solve(curvature, design.T @ (reached - odds))
        # A head that ranks rows the wrong way round shall not be turned upside down by its calibration.
        curves.append(curve if curve[1] > 0 else np.array([np.log(reached.mean() / (1 - reached.mean())), 0.0]))
    thresholds, slopes = np.array(curves).T
    return thresholds - slopes * values.mean(), slopes


def class_probabilities(values: np.ndarray, thresholds: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """`P(score = c)` from the odds of reaching each class: (n,) values -> (n, C).

    Reaching a class includes reaching the lower ones, so where two curves cross the higher class takes the lower odds.
    """
    reached = 1 / (1 + np.exp(-np.clip(thresholds + slopes * values[:, None], -50, 50)))
    edges = np.concatenate([np.ones((len(values), 1)), reached, np.zeros((len(values), 1))], axis=1)
    edges = np.minimum.accumulate(edges, axis=1)
    return edges[:, :-1] - edges[:, 1:]


class _Rows:
    """The rows of a design as the ridge sees them: a dense block and hashed words, never one wide matrix."""

    def __init__(self, design: Design, mean: np.ndarray, scale: np.ndarray) -> None:
        size = len(FEATURES)
        counts = np.clip((design.features - mean[:size]) / scale, -CLIP, CLIP) / size**0.5
        kinds = (design.kinds[:, None] == np.array(KINDS)).astype(np.float64)
        self.dense = np.concatenate([counts, kinds, design.embeddings - mean[size:]], axis=1)
        self.buckets = design.buckets.astype(np.int64)
        filled = np.maximum(1, (self.buckets > 0).sum(1))
        self.weights = (BUCKET_SCALE / filled**0.5)[:, None] * (self.buckets > 0)

    def times(self, dense: np.ndarray, words: np.ndarray) -> np.ndarray:
        return self.dense @ dense + (words[self.buckets] * self.weights).sum(1)

    def transposed_times(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shares = (self.weights * values[:, None]).ravel()
        return values @ self.dense, np.bincount(self.buckets.ravel(), shares, minlength=BUCKETS)


def _ridge_path(design: Design, scores: np.ndarray, penalties: tuple[float, ...]) -> list[tuple[float, ScoreHead]]:
    mean = np.concatenate([design.features.mean(0), design.embeddings.mean(0)]).astype(np.float64)
    deviation = design.features.std(0).astype(np.float64)
    scale = np.where(deviation > 1e-6, deviation, 1.0)
    rows = _Rows(design, mean, scale)
    intercept = np.array([scores.mean()], np.float64)
    target = np.concatenate(rows.transposed_times(scores - intercept[0]))
    width = rows.dense.shape[1]

    path, solution = [], np.zeros_like(target)
    for penalty in penalties:
        solution = _conjugate_gradients(partial(_normal_equations, rows, penalty), target, solution)
        dense, words = solution[:width].copy(), solution[width:].copy()
        words[0] = 0.0
        path.append((penalty, ScoreHead(mean, scale, dense, words, intercept, *_UNCALIBRATED)))
    return path


def _normal_equations(rows: _Rows, penalty: float, vector: np.ndarray) -> np.ndarray:
    width = rows.dense.shape[1]
    return np.concatenate(rows.transposed_times(rows.times(vector[:width], vector[width:]))) + penalty * vector


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray], target: np.ndarray, start: np.ndarray
) -> np.ndarray:
    solution = start.copy()
    residual = target - product(solution)
    direction, energy = residual.copy(), float(residual @ residual)
    goal = 1e-10 * float(target @ target)
    for _ in range(ITERATIONS):
        if energy <= goal:
            break
        image = product(direction)
        step = energy / float(direction @ image)
        solution, residual = solution + step * direction, residual - step * image
        previous, energy = energy, float(residual @ residual)
        direction = residual + (energy / previous) * direction
    return solution
