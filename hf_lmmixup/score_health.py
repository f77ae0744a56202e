"""Whether scores can be trusted: do they tell rows apart, do raters agree, do they follow length.

A rater that gives nearly every row the same score, or scores by length, has told nothing, and every later step would
follow it in silence. One report::

    ScoreHealth(rated=980, unrated=20, shares={1: 0.02, 2: 0.05, 3: 0.91, 4: 0.02}, length_correlation=0.12,
                warnings=["91 % of the rows have score 3: the rater hardly tells rows apart. ..."])
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


COLLAPSE_SHARE = 0.8
"""Share of one score from which on a rater is held to have collapsed."""

LENGTH_CORRELATION = 0.6
"""Rank correlation of score and length from which on scores are held to follow length."""

MIN_ROWS = 30
"""Below this many rated rows shares and correlations are chance."""


@dataclass(frozen=True)
class ScoreHealth:
    """How a rater's scores are spread.

    Attributes:
        rated: Rows with a score.
        unrated: Rows without one.
        shares: Score -> share of the rated rows.
        length_correlation: Spearman's rank correlation of score and text length; `None` where it is not defined.
        warnings: What is wrong, with the remedy; empty if nothing is.
    """

    rated: int
    unrated: int
    shares: dict[int, float]
    length_correlation: float | None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Agreement:
    """How far two raters agree on the rows that both rated.

    Attributes:
        rows: How many those are.
        exact: Share with equal scores.
        within_one: Share with scores at most 1 apart.
        kappa: Cohen's kappa with quadratic weights, 1 perfect, 0 chance; `None` where it is not defined.
        correlation: Spearman's rank correlation; `None` where it is not defined.
    """

    rows: int
    exact: float
    within_one: float
    kappa: float | None
    correlation: float | None


def score_health(scores: Sequence[int | None], lengths: Sequence[int] | np.ndarray) -> ScoreHealth:
    """Report how scores are spread and whether they follow length.

    Args:
        scores: Score of each row, `None` where there is none.
        lengths: Length of each row's text in characters.

    Returns:
        The report.
    """
    values = np.array(scores, dtype=np.float64)  # None becomes NaN
    known = ~np.isnan(values)
    values, rated = values[known], int(known.sum())
    classes, counts = np.unique(values, return_counts=True)
    shares = {int(score): int(count) / rated for score, count in zip(classes, counts, strict=True)}
    correlation = rank_correlation(values, np.asarray(lengths)[known])
    warnings = []
    if rated >= MIN_ROWS:
        score, share = max(shares.items(), key=lambda pair: pair[1])
        if share >= COLLAPSE_SHARE:
            warnings.append(
                f"{share:.0%} of the rows have score {score}: the rater hardly tells rows apart. "
                "Take another model or combine several raters."
            )
        if correlation is not None and abs(correlation) >= LENGTH_CORRELATION:
            warnings.append(
                f"Scores follow text length (rank correlation {correlation:.2f}): either the better rows are longer "
                "ones here, or the rater takes length for quality. A second rater would tell."
            )
    return ScoreHealth(rated, len(scores) - rated, shares, correlation, warnings)


def agreement(first: Sequence[int | None], second: Sequence[int | None]) -> Agreement:
    """Compare two raters on the same rows.

    Args:
        first: Scores by one rater, `None` where it gave none.
        second: Scores by the other, in the same order.

    Returns:
        The comparison.

    Raises:
        ValueError: If the lists differ in length or no row was rated by both.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        raise ValueError("No row was rated by both raters, so they cannot be compared.")
    a, b = np.array(pairs, dtype=np.float64).T
    distance = np.abs(a - b)
    # The mean of (a_i - b_j)^2 over all pairs of rows: how far two raters would be apart by chance.
    chance = (a**2).mean() + (b**2).mean() - 2 * a.mean() * b.mean()
    kappa = float(1 - (distance**2).mean() / chance) if chance > 1e-12 else None
    return Agreement(
        len(pairs), float((distance == 0).mean()), float((distance <= 1).mean()), kappa, rank_correlation(a, b)
    )


def rank_correlation(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; `None` if one side is constant or has under two values."""
    sides = [np.asarray(side, dtype=np.float64) for side in (first, second)]
    if any(len(side) < 2 or side.min() == side.max() for side in sides):
        return None
    a, b = map(ranks, sides)
    return float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std()))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]
