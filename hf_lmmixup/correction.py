r"""Scores corrected by their neighbors: how raters err, which rows are probably misrated, and what they should be.

A rater errs: a row whose true score is i is rated j with some chance T[i, j]. If a row and its two nearest neighbors
have the same true score, their three ratings are three draws from one row of T, so the frequencies of such triples
determine T and the shares p of the true scores without any true score being known (HOC, arXiv 2102.05291; used for
instruction data by DS2, arXiv 2410.10877). T says how many rows of each score are misrated; the ones whose neighbors
agree least with them are taken, and get the score that most of their neighbors have. This is done in many rounds on
random halves of the rows; how often a row is caught is the confidence. One row::

    score 2, neighbors [4, 4, 3, 4, 4, 4, 2, 4, 4, 5]  ->  score 4, confidence 0.93

Differences from the published code: T maximizes the likelihood of the triples (expectation maximization: no learning
rate, the likelihood only rises) where the code fits their frequencies by gradient descent; one neighbor graph serves
all rounds, where the code searches anew in each; and nothing is changed where neighbors do not agree more than by
chance. The method takes it for granted that neighbors share a true score: on scores without any pattern it would
otherwise replace a quarter of them, with confidence.
"""

import logging
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, Value

from hf_lmmixup.neighbors import NeighborGraph
from hf_lmmixup.records import SCORES, Outcome
from hf_lmmixup.transition import ScoreTransition, class_indices


logger = logging.getLogger(__name__)

K_CORRECTION = 10
"""Neighbors that vote (arXiv 2410.10877, configuration)."""

ROUNDS = 50
"""Random halves of the rows that are looked at (arXiv 2410.10877, configuration: 50 rounds)."""

MIN_CONFIDENCE = 0.5
"""Confidence from which a score is replaced (arXiv 2410.10877, code)."""

STANDARD_ERRORS = 3.0
"""By so many standard errors the agreement of neighbors must lie above chance before any score is changed."""

DIAGONAL = 0.7
"""Where the estimate starts: most ratings are right. It decides which true score is which; any larger part does."""

STEPS, TOLERANCE = 2000, 1e-9
"""Steps of expectation maximization, and the change of T below which they end."""

PSEUDO_COUNT = 0.01
"""Added to every triple, so that no chance becomes exactly 0."""


@dataclass(frozen=True)
class Correction:
    """What became of each score.

    Attributes:
        scores: Corrected scores (n,).
        confidence: How sure that is (n,), in [0, 1]: for a changed row how often its neighbors outvoted its score
            times how often they agreed on the new one, for any other row how often they did not outvote it.
        errors: `matrix[i, j]`: the chance that a row of true score i is rated j; `prior`: shares of the true scores.
        agreement: Cohen's kappa of a row's score and its nearest neighbor's: 0 by chance, 1 if they are all equal.
        trusted: Whether that is enough; if not, no score was changed.
    """

    scores: np.ndarray
    confidence: np.ndarray
    errors: ScoreTransition
    agreement: float
    trusted: bool


def correct(
    scores: np.ndarray,
    neighbor_indices: np.ndarray,
    *,
    min_confidence: float = MIN_CONFIDENCE,
    rounds: int = ROUNDS,
    seed: int = 0,
    check: bool = True,
) -> Correction:
    """Find misrated rows and their probable scores.

    Args:
        scores: Score of each row (n,).
        neighbor_indices: Row numbers of each row's neighbors (n, k), nearest first, self excluded; negative numbers
            are holes. The first two tell how raters err, all of them vote.
        min_confidence: Confidence from which a score is replaced.
        rounds: Random halves of the rows that are looked at.
        seed: Seed of the halves.
        check: Change nothing where neighbors agree no more than by chance.

    Returns:
        Corrected scores, confidence and the estimate of how raters err.

    Raises:
        ValueError: If a score is not one of `records.SCORES`, or `min_confidence` is no share.
    """
    if not 0 <= min_confidence <= 1 or rounds < 1:
        raise ValueError(f"min_confidence={min_confidence} must lie between 0 and 1, rounds={rounds} be at least 1.")
    ladder = np.array(SCORES)
    own = class_indices(np.asarray(scores), ladder)
    counts = triples(own, neighbor_indices, len(ladder))
    errors = estimate_errors(counts, ladder)
    agreement, error = neighbor_agreement(counts)
    trusted = not check or agreement > STANDARD_ERRORS * error
    seen, caught, suggested = _vote(own, neighbor_indices, misrated_share(errors), rounds, seed)
    doubt = (caught + 1) / (seen + 2)
    best = suggested.argmax(1)
    sure = doubt * (suggested[np.arange(len(own)), best] + 1) / (caught + len(ladder))
    changed = trusted & (caught > 0) & (doubt > 0.5) & (sure >= min_confidence)
    corrected, confidence = ladder[np.where(changed, best, own)], np.where(changed, sure, 1 - doubt)
    return Correction(corrected, confidence, errors, agreement, trusted)


def correct_scores(rated: Dataset, graph: NeighborGraph, *, min_confidence: float = MIN_CONFIDENCE) -> Outcome:
    """Correct scores by what the rows' neighbors were given (DS2, arXiv 2410.10877).

    Args:
        rated: Rows with `score`.
        graph: Their neighbors, at least `K_CORRECTION` each; the graph of the run, computed once.
        min_confidence: Confidence from which a score is replaced.

    Returns:
        The same rows: `score` corrected, `raw_score` as it was given, and `score_confidence`. Rows without a score
        keep none and have no vote. No row is dropped.

    Raises:
        ValueError: If the graph is one of other rows.
    """
    if len(graph) != len(rated):
        raise ValueError(
            f"The neighbor graph has {len(graph)} rows and the dataset {len(rated)}. Build it from these."
        )
    raw = rated["score"][:]
    known = np.flatnonzero([score is not None for score in raw])
    found = correct(
        np.array([raw[row] for row in known], np.int64), graph.take(known).indices, min_confidence=min_confidence
    )
    scores, confidence = list(raw), [None] * len(raw)
    for row, score, sure in zip(known, found.scores.tolist(), found.confidence.tolist(), strict=True):
        scores[row], confidence[row] = score, sure
    changed = sum(new != old for new, old in zip(scores, raw, strict=True))
    if found.trusted:
        logger.info("%d of %d scores corrected by their neighbors.", changed, len(known))
    else:
        logger.warning(
            "No score was corrected: neighbors agree no more than by chance (kappa %.3f). They say nothing about "
            "these scores.",
            found.agreement,
        )
    columns = {"score": (scores, "int32"), "raw_score": (raw, "int32"), "score_confidence": (confidence, "float32")}
    corrected = rated.remove_columns([name for name in columns if name in rated.column_names])
    for name, (values, kind) in columns.items():
        corrected = corrected.add_column(name, values, feature=Value(kind))
    return Outcome(corrected)


def triples(own: np.ndarray, neighbor_indices: np.ndarray, size: int) -> np.ndarray:
    """How often each triple of classes occurs: a row's own, its nearest and its second nearest neighbor's (C, C, C).

    Rows with fewer than two neighbors are left out.
    """
    if neighbor_indices.shape[1] < 2:
        return np.zeros((size, size, size), np.int64)
    near = neighbor_indices[:, :2]
    rows = (near >= 0).all(1)
    first, second = own[near[rows, 0]], own[near[rows, 1]]
    codes = (own[rows] * size + first) * size + second
    return np.bincount(codes, minlength=size**3).reshape(size, size, size)


def neighbor_agreement(counts: np.ndarray) -> tuple[float, float]:
    """Cohen's kappa of a row's class and its nearest neighbor's, and its standard error if only chance were at work.

    Args:
        counts: How often each triple occurs (C, C, C).

    Returns:
        Kappa and standard error; (0, 1) where they are not defined, as without rows or with a single class.
    """
    pairs = counts.sum(2)
    rows = pairs.sum()
    chance = float(pairs.sum(1) @ pairs.sum(0) / rows**2) if rows else 1.0
    if chance >= 1:
        return 0.0, 1.0
    return float((np.trace(pairs) / rows - chance) / (1 - chance)), float((chance / (1 - chance) / rows) ** 0.5)


def estimate_errors(counts: np.ndarray, classes: np.ndarray) -> ScoreTransition:
    r"""The T and p under which the triples are likeliest: $P(i, j, l) = \sum_a p_a T_{ai} T_{aj} T_{al}$.

    Args:
        counts: How often each triple occurs (C, C, C).
        classes: The classes that it counts.

    Returns:
        T as `matrix`, whose row a belongs to the true class a, and p as `prior`.
    """
    size = len(classes)
    observed = counts + PSEUDO_COUNT / size**3
    share = observed.sum((1, 2)) / observed.sum()
    chances = np.full((size, size), (1 - DIAGONAL) / max(1, size - 1))
    np.fill_diagonal(chances, DIAGONAL if size > 1 else 1.0)
    for _ in range(STEPS):
        joint = share[:, None, None, None] * np.einsum("ai,aj,al->aijl", chances, chances, chances)
        weight = joint * (observed / np.maximum(joint.sum(0), 1e-300))
        updated = weight.sum((2, 3)) + weight.sum((1, 3)) + weight.sum((1, 2))
        updated /= updated.sum(1, keepdims=True)
        moved = np.abs(updated - chances).max()
        chances, share = updated, weight.sum((1, 2, 3)) / weight.sum()
        if moved < TOLERANCE:
            break
    return ScoreTransition(classes, chances, share)


def misrated_share(errors: ScoreTransition) -> np.ndarray:
    """For each given score the share of rows whose true score is another one, by Bayes' rule (C,)."""
    joint = errors.prior[:, None] * errors.matrix
    return 1 - np.diag(joint) / np.maximum(joint.sum(0), 1e-300)


def votes_of(own: np.ndarray, neighbor_indices: np.ndarray, here: np.ndarray, size: int) -> np.ndarray:
    """How many of each row's neighbors that are `here` (n,) have each class (n, C)."""
    n = len(own)
    valid = (neighbor_indices >= 0) & here[neighbor_indices]
    rows = np.broadcast_to(np.arange(n)[:, None], neighbor_indices.shape)[valid]
    return np.bincount(rows * size + own[neighbor_indices[valid]], minlength=n * size).reshape(n, size)


def _vote(
    own: np.ndarray, neighbor_indices: np.ndarray, misrated: np.ndarray, rounds: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each row was looked at (n,), caught (n,), and given which class (n, C)."""
    n, size = len(own), len(misrated)
    seen, caught = np.zeros(n), np.zeros(n)
    suggested = np.zeros((n, size))
    # Equal votes go to the class that is nearest to the row's own, then to the lower one.
    distance = np.abs(np.arange(size)[None, :] - own[:, None])
    preference = -(distance + np.arange(size) / size) / (2 * size)
    generator = np.random.default_rng(seed)
    for _ in range(rounds):
        draw = generator.random(n)
        here = draw < 0.5
        votes = votes_of(own, neighbor_indices, here, size)
        looked = np.flatnonzero(here & votes.any(1))
        agreement = votes[looked, own[looked]] / np.linalg.norm(votes[looked], axis=1)
        # Within each class by agreement, equal ones by this round's draw: place 0 agrees least.
        order = np.lexsort((draw[looked], agreement, own[looked]))
        ranked = looked[order]
        amounts = np.bincount(own[ranked], minlength=size)
        place = np.arange(len(ranked)) - (np.cumsum(amounts) - amounts)[own[ranked]]
        out = ranked[place < np.rint(amounts * misrated)[own[ranked]]]
        others = votes[out] + preference[out]
        others[np.arange(len(out)), own[out]] = -np.inf
        best = others.argmax(1)
        # A row whose neighbors all have its own score is not misrated, however many rows should be.
        voted = votes[out, best] > 0
        seen[looked] += 1
        caught[out[voted]] += 1
        suggested[out[voted], best[voted]] += 1
    return seen, caught, suggested
