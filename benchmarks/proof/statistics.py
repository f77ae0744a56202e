"""Figures of the proof: means over seeds, paired bootstrap intervals, gap closed, token efficiency.

The bootstrap is paired and has two levels: it draws seeds, and within each seed characters, and takes the answers of
all arms about a drawn character together (Efron and Tibshirani 1993, chapter 8). One line::

    distilled - raw   0.271   [0.243, 0.301]
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.proof.arms import DISTILLED, GOLD, LONG_RAW, RAW


DRAWS = 10_000
LEVEL = 0.95
NAN = float("nan")


def resampled(right: Mapping[str, Sequence[np.ndarray]], draws: int = DRAWS, seed: int = 0) -> dict[str, np.ndarray]:
    """Accuracies (draws,) of each arm under the same resampling.

    Args:
        right: For each arm and seed the share of right answers about each character (characters,).
        draws: Number of resamples.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    arms = list(right)
    seeds = len(right[arms[0]])
    tables = [np.stack([right[arm][number] for arm in arms]) for number in range(seeds)]
    means = np.zeros((seeds, draws, len(arms)))
    for number, table in enumerate(tables):
        size = table.shape[1]
        counts = rng.multinomial(size, np.full(size, 1 / size), size=draws)
        means[number] = counts @ table.T / size
    chosen = rng.integers(seeds, size=(draws, seeds))
    drawn = means[chosen, np.arange(draws)[:, None]].mean(axis=1)
    return {arm: drawn[:, column] for column, arm in enumerate(arms)}


def interval(values: np.ndarray) -> list[float]:
    """The middle 95 % of resampled values."""
    tail, known = (1 - LEVEL) / 2, values[np.isfinite(values)]
    if not len(known):
        return [NAN, NAN]
    return [round(float(value), 4) for value in np.quantile(known, [tail, 1 - tail])]


def gap_closed(distilled: Any, raw: Any, oracle: Any) -> Any:
    """How far an arm goes from raw to the oracle: (distilled - raw) / (oracle - raw); NaN where there is no way."""
    way = np.asarray(oracle - raw, float)
    return (distilled - raw) / np.where(way == 0, NAN, way)


def tokens_to_reach(tokens: Sequence[float], accuracy: Sequence[float], target: float) -> float | None:
    """Tokens at which a curve first reaches an accuracy, by straight lines between examinations; `None` if never."""
    before = (0.0, 0.0)
    for seen, value in zip(tokens, accuracy, strict=True):
        if value >= target:
            share = (target - before[1]) / (value - before[1]) if value > before[1] else 1.0
            return before[0] + share * (seen - before[0])
        before = (seen, value)
    return None


def summarize(results: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Every figure of the report.

    Args:
        results: For each arm one dictionary a seed: `right` (characters,), `recall`, `tokens`, `accuracy`, `steps`,
            `rows`, `row_tokens`.
    """
    right = {arm: [np.asarray(run["right"], float) for run in runs] for arm, runs in results.items()}
    draws = resampled(right)
    curves = {arm: _curve(runs) for arm, runs in results.items()}
    final = {arm: float(np.mean([values.mean() for values in runs])) for arm, runs in right.items()}
    arms = {}
    for arm, runs in results.items():
        arms[arm] = {
            "accuracy": final[arm],
            "interval": interval(draws[arm]),
            "by_seed": [round(float(values.mean()), 4) for values in right[arm]],
            "minus_raw": final[arm] - final[RAW],
            "minus_raw_interval": interval(draws[arm] - draws[RAW]),
            "gap_closed": float(gap_closed(final[arm], final[RAW], final[GOLD])),
            "recall": float(np.mean([run["recall"] for run in runs])),
            "rows": float(np.mean([run["rows"] for run in runs])),
            "row_tokens": float(np.mean([run["row_tokens"] for run in runs])),
            "steps": [run["steps"] for run in runs],
            "tokens_seen": [run["tokens"][-1] for run in runs],
            "curve": curves[arm],
        }
    closed = gap_closed(draws[DISTILLED], draws[RAW], draws[GOLD])
    summary = {"seeds": len(right[RAW]), "arms": arms, "gap_closed_interval": interval(closed)}
    return summary | {"efficiency": _efficiency(curves, final)}


def _curve(runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    points = min(len(run["tokens"]) for run in runs)
    return {
        name: [float(np.mean([run[name][point] for run in runs])) for point in range(points)]
        for name in ("tokens", "accuracy")
    }


def _efficiency(curves: Mapping[str, dict[str, list[float]]], final: Mapping[str, float]) -> dict[str, Any]:
    """Tokens that distilled needs for raw's final accuracy, and raw, with a longer budget, for distilled's."""
    longer = curves.get(LONG_RAW, curves[RAW])
    distilled = tokens_to_reach(curves[DISTILLED]["tokens"], curves[DISTILLED]["accuracy"], final[RAW])
    raw = tokens_to_reach(longer["tokens"], longer["accuracy"], final[DISTILLED])
    budget = curves[RAW]["tokens"][-1]
    return {
        "budget": budget,
        "distilled_reaches_raw": distilled,
        "ratio": budget / distilled if distilled else None,
        "raw_reaches_distilled": raw,
        "raw_longer": longer["tokens"][-1],
        "raw_longer_accuracy": longer["accuracy"][-1],
    }
