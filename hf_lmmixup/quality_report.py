"""How well a judge of texts predicts scores it has not seen, and which of two judges a datastore uses.

Every datastore carries one report, measured on folds of its own rows::

    {"rows": 989, "default": "head", "penalty": 10.0,
     "head": {"auc": 0.91, "spearman": 0.64, "calibration_error": 0.03}, "neighbors": {"auc": 0.42, ...}}
"""

from typing import Any

import numpy as np

from hf_lmmixup.neighbors import build_graph, top_k
from hf_lmmixup.records import HIGH_SCORE, SCORES
from hf_lmmixup.score_head import PENALTIES, Design, class_probabilities, fit_calibration, fit_values
from hf_lmmixup.score_health import ranks
from hf_lmmixup.transition import estimate, neighbor_counts, posterior


FOLDS = 5
MIN_ROWS = 100
"""Fewer rows cannot tell a good head from a lucky one; the datastore then keeps to its neighbors."""
MAX_ROWS = 20_000
"""Rows that a head learns from; its errors stop shrinking long before."""
CALIBRATION_BINS = 10


def folds(kinds: np.ndarray) -> np.ndarray:
    """A fold number for each row: consecutive rows of one task type share a fold.

    Rows of one cluster usually stand together; dividing them would let a judge recognize a subject instead of judging.
    """
    numbers = np.zeros(len(kinds), np.int64)
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        numbers[rows] = np.arange(len(rows)) * FOLDS // len(rows)
    return numbers


def learnable_rows(scores: np.ndarray) -> np.ndarray:
    """The rows from which a head is learned: all, evenly thinned out if too many, none if it could not be measured."""
    high = int((scores >= HIGH_SCORE).sum())
    if len(scores) < MIN_ROWS or min(high, len(scores) - high) < FOLDS:
        return np.zeros(0, np.int64)
    return np.unique(np.linspace(0, len(scores) - 1, min(len(scores), MAX_ROWS)).astype(np.int64))


def distance_floor(embeddings: np.ndarray, kinds: np.ndarray) -> float:
    """How close a text must be to a datastore: half the first percentile of what rows of other folds reach.

    Folds hold different subjects, so a row's closest row in another fold is what a text of a new subject finds. With
    too few rows to tell, every text that points in the same general direction (cosine 0) is near enough.
    """
    if len(kinds) < MIN_ROWS:
        return 0.0
    number, closest = folds(kinds), np.zeros(len(kinds))
    for kind in np.unique(kinds):
        for fold in range(FOLDS):
            asked, known = (kinds == kind) & (number == fold), (kinds == kind) & (number != fold)
            if asked.any() and known.any():
                closest[asked] = top_k(embeddings[known], embeddings[asked], 1)[0][:, 0]
    return round(max(0.0, float(np.percentile(closest, 1)) / 2), 4)


def measure(posteriors: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """AUC of high against low scores, rank correlation, and calibration error of the chance of a high score.

    Args:
        posteriors: Distribution over the classes for rows that were not learned from (n, C).
        scores: Their scores.

    Returns:
        `auc` (Mann-Whitney), `spearman` and `calibration_error`: the mean distance, over ten bins of equal size, of
        the predicted and the seen share of high scores.
    """
    expected = posteriors @ np.array(SCORES, np.float64)
    chance, high = posteriors[:, HIGH_SCORE:].sum(1), scores >= HIGH_SCORE
    bins = np.array_split(np.argsort(chance, kind="stable"), CALIBRATION_BINS)
    gaps = [len(rows) * abs(chance[rows].mean() - high[rows].mean()) for rows in bins if len(rows)]
    return {
        "auc": auc(expected, high),
        "spearman": float(np.corrcoef(ranks(expected), ranks(scores))[0, 1]) if len(np.unique(expected)) > 1 else 0.0,
        "calibration_error": float(sum(gaps) / len(scores)),
    }


def auc(values: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive row has a higher value than a negative one; ties count half."""
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        raise ValueError("An AUC needs rows of both kinds, and one of them is missing.")
    return float((ranks(values)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def compare_judges(
    design: Design, scores: np.ndarray, k: int, k_transition: int
) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]:
    """Let neighbors and head judge each fold from the other folds.

    Args:
        design: The rows of a datastore.
        scores: Their scores.
        k: Neighbors that judge a row.
        k_transition: Neighbors counted into the transition.

    Returns:
        The report, and the head's calibration: thresholds and slopes, fitted to values of rows it had not seen.
    """
    number = folds(design.kinds)
    values = {penalty: np.zeros(len(scores)) for penalty in PENALTIES}
    neighbors = np.zeros((len(scores), len(SCORES)))
    for fold in range(FOLDS):
        seen, unseen = np.flatnonzero(number != fold), np.flatnonzero(number == fold)
        for penalty, found in fit_values(design.take(seen), scores[seen], design.take(unseen)).items():
            values[penalty][unseen] = found
        for kind in np.unique(design.kinds[unseen]):
            asked, known = unseen[design.kinds[unseen] == kind], seen[design.kinds[seen] == kind]
            neighbors[asked] = _by_neighbors(design.embeddings, scores, known, asked, k, k_transition)
    high = scores >= HIGH_SCORE
    best = max(PENALTIES, key=lambda penalty: (auc(values[penalty], high), penalty))
    calibration = fit_calibration(values[best], scores)
    measured = {
        "head": measure(class_probabilities(values[best], *calibration), scores),
        "neighbors": measure(neighbors, scores),
    }
    default = max(("neighbors", "head"), key=lambda name: measured[name]["auc"])
    return {"rows": len(scores), "default": default, "penalty": best, **measured}, calibration


def _by_neighbors(
    embeddings: np.ndarray, scores: np.ndarray, known: np.ndarray, asked: np.ndarray, k: int, k_transition: int
) -> np.ndarray:
    transition = estimate(scores[known], build_graph(embeddings[known], k_transition).indices)
    _, indices = top_k(embeddings[known], embeddings[asked], k)
    return posterior(neighbor_counts(scores[known], indices, transition.classes), transition)
