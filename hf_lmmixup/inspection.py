"""What the clusters look like, as plain data for a report: cohesion, sizes, a map, outliers, samples.

The cohesion of a cluster is the mean cosine over its pairs of rows. The map shows rows on the two directions in which
the embeddings vary most (principal components). An outlier is a row far from the rest of its cluster: its fit is its
mean cosine to the other members.

Part of one inspection::

    {"rows": 8000, "clustered": 7990, "clusters": 2664, "sizes": {"2": 933, "3": 953, "4": 615, "5": 163},
     "cohesion": {"mean": 0.907, "quantiles": {"0.05": 0.71, "0.5": 0.94, "0.95": 0.99}, ...}, ...}
"""

from typing import Any

import numpy as np
from datasets import Dataset


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 20
OUTLIERS = 20
SAMPLES = 4
"""Clusters shown of each kind: loosest, middle, tightest."""
MAP_ROWS = 5_000
"""A browser draws so many points without delay."""


def inspect(dataset: Dataset, embeddings: np.ndarray, *, map_rows: int = MAP_ROWS, seed: int = 0) -> dict[str, Any]:
    """Measure the clusters of a dataset.

    Args:
        dataset: Rows with `id`, `prompt`, `completion` and `cluster_id`, as `clustering.cluster` returns them.
        embeddings: Their unit vectors (n, d), in the same order.
        map_rows: Most rows on the map; more are sampled.
        seed: Seed of that sample.

    Returns:
        Numbers, strings, lists and dictionaries only, ready for JSON: `rows`, `clustered`, `singletons`, `clusters`,
        `mean_size`, `sizes`, `cohesion`, `map`, `outliers`, `samples`. Without clusters `cohesion` holds `None`s.

    Raises:
        ValueError: If rows and embeddings do not match.
    """
    if len(embeddings) != len(dataset):
        raise ValueError(f"{len(dataset)} rows need as many embeddings, not {len(embeddings)}.")
    numbers = [-1 if number is None else number for number in dataset["cluster_id"][:]]
    names, labels = np.unique(np.array(numbers, np.int64), return_inverse=True)
    if len(names) and names[0] == -1:
        names, labels = names[1:], labels - 1
    sizes = np.bincount(labels[labels >= 0], minlength=len(names))
    fit, cohesion = _fit(np.asarray(embeddings), labels, sizes)
    histogram = np.bincount(sizes).tolist()
    return {
        "rows": len(labels),
        "clustered": int(sizes.sum()),
        "singletons": int((labels < 0).sum()),
        "clusters": len(names),
        "mean_size": float(sizes.mean()) if len(sizes) else None,
        "sizes": {str(size): count for size, count in enumerate(histogram) if count},
        "cohesion": _distribution(cohesion[sizes > 1]),
        "map": _map(dataset, np.asarray(embeddings), fit, map_rows, seed),
        "outliers": _outliers(dataset, fit),
        "samples": _samples(dataset, names, labels, fit, cohesion),
    }


def _fit(embeddings: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosine of each row to the rest of its cluster (n,), and of each cluster's pairs (c,); NaN where none is.

    With s the sum of a cluster's m unit rows, a row's cosines to the others sum to `x.s - x.x`: no pairs are formed.
    """
    order = np.argsort(labels, kind="stable")[int((labels < 0).sum()) :]
    fit = np.full(len(labels), np.nan)
    cohesion = np.full(len(sizes), np.nan)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for first in range(0, len(sizes), 4096):
        last = min(first + 4096, len(sizes))
        rows = order[starts[first] : starts[last]]
        vectors = embeddings[rows].astype(np.float32)
        own = sizes[first:last]
        sums = np.repeat(np.add.reduceat(vectors, starts[first:last] - starts[first], axis=0), own, axis=0)
        others = np.repeat(own, own) - 1
        totals = (vectors * (sums - vectors)).sum(1)
        fit[rows] = np.divide(totals, others, out=np.full(len(rows), np.nan), where=others > 0)
        cohesion[first:last] = np.add.reduceat(fit[rows], starts[first:last] - starts[first]) / own
    return fit, cohesion


def _distribution(cohesion: np.ndarray) -> dict[str, Any]:
    if not len(cohesion):
        return {"mean": None, "quantiles": {str(q): None for q in QUANTILES}, "edges": [], "counts": []}
    counts, edges = np.histogram(cohesion, BINS, (min(0.0, float(cohesion.min())), max(1.0, float(cohesion.max()))))
    quantiles = np.quantile(cohesion, QUANTILES)
    return {
        "mean": float(cohesion.mean()),
        "quantiles": {str(q): float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }


def _map(dataset: Dataset, embeddings: np.ndarray, fit: np.ndarray, most: int, seed: int) -> dict[str, list[Any]]:
    """Up to `most` rows on the first two principal components."""
    rows = np.arange(len(embeddings))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    shown = dataset.select(rows)
    x, y = _principal(embeddings[rows].astype(np.float64)).T
    return {
        "id": shown["id"][:],
        "cluster_id": shown["cluster_id"][:],
        "x": x.round(4).tolist(),
        "y": y.round(4).tolist(),
        "fit": [None if np.isnan(value) else round(float(value), 4) for value in fit[rows]],
    }


def _principal(vectors: np.ndarray) -> np.ndarray:
    """Coordinates (n, 2) on the two directions of largest variance; each points to where its largest weight is."""
    if not len(vectors):
        return np.zeros((0, 2))
    centered = vectors - vectors.mean(0)
    axes = np.linalg.eigh(centered.T @ centered)[1][:, ::-1][:, :2]
    largest = axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])]
    coordinates = np.zeros((len(vectors), 2))
    coordinates[:, : axes.shape[1]] = centered @ (axes * np.sign(largest))
    return coordinates


def _outliers(dataset: Dataset, fit: np.ndarray) -> list[dict[str, Any]]:
    """The rows that fit their cluster least, worst first."""
    ranked = np.argsort(fit, kind="stable")
    return [_member(dataset, int(row), fit) for row in ranked[:OUTLIERS] if not np.isnan(fit[row])]


def _samples(
    dataset: Dataset, names: np.ndarray, labels: np.ndarray, fit: np.ndarray, cohesion: np.ndarray
) -> list[dict[str, Any]]:
    """Whole clusters: the loosest, those around the middle, and the tightest; none twice."""
    ranked = np.argsort(cohesion, kind="stable")
    ranked = ranked[~np.isnan(cohesion[ranked])]
    middle = max(0, (len(ranked) - SAMPLES) // 2)
    kinds = {
        "loosest": ranked[:SAMPLES],
        "middle": ranked[middle : middle + SAMPLES],
        "tightest": ranked[::-1][:SAMPLES],
    }
    shown: dict[int, str] = {}
    for kind, clusters in kinds.items():
        for cluster in clusters.tolist():
            shown.setdefault(cluster, kind)
    return [
        {
            "kind": kind,
            "cluster_id": int(names[cluster]),
            "cohesion": float(cohesion[cluster]),
            "members": [_member(dataset, int(row), fit) for row in np.flatnonzero(labels == cluster)],
        }
        for cluster, kind in shown.items()
    ]


def _member(dataset: Dataset, row: int, fit: np.ndarray) -> dict[str, Any]:
    values = dataset[row]
    return {name: values[name] for name in ("id", "cluster_id", "prompt", "completion")} | {"fit": float(fit[row])}
