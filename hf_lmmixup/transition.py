"""What the scores of a text's neighbors say about its own score: transition matrix, prior, posterior.

Rows that lie close to each other in embedding space tend to be equally good. `estimate` counts, over a scored
datastore, how often a row of score i has a neighbor of score j; `posterior` turns the scores seen around a new text
into a distribution over its own score (arXiv 2510.20449; the neighbor co-occurrence of its code, not the consensus
estimator of DS2).

One text among sixteen neighbors, twelve of score 4 and four of score 2::

    counts = [0, 0, 4, 0, 12, 0]   ->   posterior = [0.00, 0.00, 0.02, 0.01, 0.96, 0.01]   expected score 3.97
"""

from dataclasses import dataclass

import numpy as np

from hf_lmmixup.records import SCORES


SMOOTHING = 0.01
"""Added to every count, so that no score excludes another one (arXiv 2510.20449, code)."""

PRIOR_FLOOR = 1e-8
"""Added to every class frequency (arXiv 2510.20449, code)."""

LOG_FLOOR = 1e-12
"""Added inside logarithms (arXiv 2510.20449, code)."""


@dataclass(frozen=True)
class ScoreTransition:
    """How scores neighbor each other.

    Attributes:
        classes: The possible scores (C,), ascending.
        matrix: `matrix[i, j]`, (C, C) float64: the chance that a neighbor of a row with score i has score j.
        prior: The frequency of each score (C,).
    """

    classes: np.ndarray
    matrix: np.ndarray
    prior: np.ndarray

    def __post_init__(self) -> None:
        size = len(self.classes)
        if self.matrix.shape != (size, size) or self.prior.shape != (size,):
            raise ValueError(
                f"{size} classes need a matrix ({size}, {size}) and a prior ({size},), "
                f"not {self.matrix.shape} and {self.prior.shape}."
            )
        for name, rows in (("matrix", self.matrix), ("prior", self.prior[None])):
            if not np.isfinite(rows).all() or (rows < 0).any() or not np.allclose(rows.sum(1), 1, atol=1e-6):
                raise ValueError(f"The rows of the transition's {name} are not probabilities that sum to 1.")


def class_indices(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The position of each score among the classes (n,).

    Raises:
        ValueError: If a score is not one of the classes.
    """
    positions = np.searchsorted(classes, scores).clip(0, len(classes) - 1)
    unknown = classes[positions] != scores
    if unknown.any():
        raise ValueError(f"Score {scores[unknown][0]} is not one of the classes {classes.tolist()}.")
    return positions


def estimate(scores: np.ndarray, neighbor_indices: np.ndarray) -> ScoreTransition:
    """Count neighboring scores: `T[i, j] ~ 0.01 + #(neighbors of score j around rows of score i)`, rows sum to 1.

    Args:
        scores: Score of each row (n,).
        neighbor_indices: Row numbers of each row's neighbors (n, k), self excluded; negative numbers are holes.

    Returns:
        The transition with the scores' frequencies as prior.
    """
    ladder = np.array(SCORES)
    own = class_indices(np.asarray(scores), ladder)
    size = len(ladder)
    valid = neighbor_indices >= 0
    centers = np.broadcast_to(own[:, None], neighbor_indices.shape)[valid]
    pairs = np.bincount(centers * size + own[neighbor_indices[valid]], minlength=size * size)
    matrix = pairs.reshape(size, size) + SMOOTHING
    prior = np.bincount(own, minlength=size) / max(1, len(own)) + PRIOR_FLOOR
    return ScoreTransition(ladder, matrix / matrix.sum(1, keepdims=True), prior / prior.sum())


def neighbor_counts(scores: np.ndarray, neighbor_indices: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How often each class occurs among the neighbors of each query: (m, k) row numbers -> (m, C) counts."""
    size, m = len(classes), len(neighbor_indices)
    own = class_indices(np.asarray(scores), classes)
    flat = own[neighbor_indices] + size * np.arange(m)[:, None]
    return np.bincount(flat.ravel(), minlength=m * size).reshape(m, size)


def posterior(counts: np.ndarray, transition: ScoreTransition) -> np.ndarray:
    """Distribution over the own score: `softmax_i(log p_i + sum_j counts_j log T_ij)`.

    Args:
        counts: How often each class was seen among the neighbors (m, C).
        transition: Matrix and prior.

    Returns:
        Probabilities (m, C) float64.
    """
    logits = np.log(transition.prior + LOG_FLOOR) + counts @ np.log(transition.matrix + LOG_FLOOR).T
    weights = np.exp(logits - logits.max(1, keepdims=True)) if len(counts) else logits
    return weights / weights.sum(1, keepdims=True)


def expected_score(posterior: np.ndarray) -> np.ndarray:
    """The mean score under each posterior (m,)."""
    return posterior @ np.array(SCORES, np.float64)
