r"""How sure a comparison is: bootstrap intervals over test items and seeds, paired wherever systems share them.

Two systems that answer the same items differ less by luck than their separate intervals suggest: what is hard for one
is hard for the other. So items and seeds are drawn once for all systems, and the difference is taken in every draw::

    differences({"raw": scores_raw, "distilled": scores_distilled}, baseline="raw")
    ->  {"distilled": Interval(mean=0.21, low=0.15, high=0.27)}

Source: the percentile bootstrap (Efron, 1979); paired for language systems as in Koehn (2004).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


DRAWS = 2_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


def intervals(scores: Mapping[str, np.ndarray], *, draws: int = DRAWS, seed: int = 0) -> dict[str, Interval]:
    """The mean of each system, with the interval that its items and seeds leave.

    Args:
        scores: System -> scores (seeds, items); `nan` where an item was not judged.
        draws: Bootstrap samples.
        seed: Seed of the draws.

    Returns:
        System -> interval.

    Raises:
        ValueError: If the shapes differ, or a system has no score at all.
    """
    samples = _samples(scores, draws, seed)
    return {name: _interval(float(np.nanmean(scores[name])), drawn) for name, drawn in samples.items()}


def differences(
    scores: Mapping[str, np.ndarray], *, baseline: str, draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval]:
    """How far each other system lies above the baseline, paired by items and seeds.

    Args:
        scores: As for `intervals`.
        baseline: Whom to compare with.
        draws: Bootstrap samples.
        seed: Seed of the draws.

    Returns:
        System -> interval of its difference.

    Raises:
        ValueError: As for `intervals`, or if there is no such baseline.
    """
    if baseline not in scores:
        raise ValueError(f"baseline={baseline!r} is no system. Expected one of {list(scores)}.")
    samples = _samples(scores, draws, seed)
    base = float(np.nanmean(scores[baseline]))
    return {
        name: _interval(float(np.nanmean(scores[name])) - base, drawn - samples[baseline])
        for name, drawn in samples.items()
        if name != baseline
    }


def _samples(scores: Mapping[str, np.ndarray], draws: int, seed: int) -> dict[str, np.ndarray]:
    """Means (draws,) of every system over the same draws of seeds and items."""
    arrays = {name: np.asarray(values, np.float64) for name, values in scores.items()}
    shapes = {values.shape for values in arrays.values()}
    if len(shapes) != 1 or any(values.ndim != 2 for values in arrays.values()):
        raise ValueError(f"All systems need scores of one shape (seeds, items), not {sorted(shapes)}.")
    for name, values in arrays.items():
        if not np.isfinite(values).any():
            raise ValueError(f"{name!r} has no score at all.")
    seeds, items = shapes.pop()
    rng = np.random.default_rng(seed)
    means: dict[str, list[float]] = {name: [] for name in arrays}
    for _ in range(draws):
        rows, columns = rng.integers(seeds, size=seeds), rng.integers(items, size=items)
        for name, values in arrays.items():
            drawn = values[np.ix_(rows, columns)]
            known = np.isfinite(drawn)
            means[name].append(float(drawn[known].mean()) if known.any() else np.nan)
    return {name: np.array(values) for name, values in means.items()}


def _interval(mean: float, drawn: np.ndarray) -> Interval:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return Interval(mean, float(low), float(high))
