"""Clusters on a plane, for the map in the report: the two directions in which the embeddings differ most.

    {"x": [0.12, ...], "y": [...], "cluster": [4, ...], "score": [1, ...], "kind": ["source", ...], "text": [...]}

Principal components need no random numbers and no parameters: equal rows give an equal map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


MOST_POINTS = 1_500
"""Points that a page draws without delay, and that a reader can still tell apart."""

DIGITS = 4


def map_points(
    sources: Sequence[Mapping[str, Any]],
    source_embeddings: np.ndarray,
    distilled: Sequence[Mapping[str, Any]],
    distilled_embeddings: np.ndarray,
    *,
    limit: int = MOST_POINTS,
) -> dict[str, list[Any]]:
    """The points of the map.

    Args:
        sources: Clustered rows with `cluster_id`, `score` and `prompt`; rows without a cluster are left out.
        source_embeddings: Their unit vectors (n, d).
        distilled: Distilled rows with the same columns.
        distilled_embeddings: Their unit vectors (m, d), by the same encoder.
        limit: Most points; where there are more, whole clusters are left out, evenly.

    Returns:
        Equally long lists `x`, `y`, `cluster`, `score`, `kind` and `text`, as `facts["map"]` needs them.
    """
    shown = _shown_clusters([row["cluster_id"] for row in [*sources, *distilled]], limit)
    axes = principal_axes(source_embeddings)
    points: dict[str, list[Any]] = {name: [] for name in ("x", "y", "cluster", "score", "kind", "text")}
    center = source_embeddings.mean(axis=0, dtype=np.float64) if len(source_embeddings) else 0.0
    for kind, rows, embeddings in (
        ("source", sources, source_embeddings),
        ("distilled", distilled, distilled_embeddings),
    ):
        for row, embedding in zip(rows, embeddings, strict=True):
            if row["cluster_id"] in shown:
                x, y = (embedding - center) @ axes
                values = (round(float(x), DIGITS), round(float(y), DIGITS), int(row["cluster_id"]), row["score"], kind)
                for name, value in zip(points, (*values, str(row["prompt"])), strict=True):
                    points[name].append(value)
    return points


def principal_axes(embeddings: np.ndarray) -> np.ndarray:
    """The two directions (d, 2) of greatest variance, each with its largest entry positive."""
    width = embeddings.shape[1]
    if len(embeddings) < 2 or width < 2:
        return np.eye(width, 2)
    centered = embeddings - embeddings.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centered.T @ centered)
    axes = vectors[:, [-1, -2]]
    largest = np.abs(axes).argmax(axis=0)
    return np.asarray(axes * np.sign(axes[largest, [0, 1]]))


def _shown_clusters(numbers: Sequence[int | None], limit: int) -> set[int]:
    """As many clusters as the limit allows, evenly over all."""
    known = sorted({number for number in numbers if number is not None})
    rows = sum(number is not None for number in numbers)
    if not known:
        return set()
    keep = max(1, min(len(known), int(len(known) * limit / max(1, rows))))
    return {known[place * len(known) // keep] for place in range(keep)}
