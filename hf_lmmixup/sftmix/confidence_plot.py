"""The distribution of confidence as a small self-contained SVG: two halves, the median, the axis in log perplexity.

Confidence is minus a perplexity, and perplexities spread over orders of magnitude, so the axis shows
log10(-confidence): 0 is a response that the reference model knew by heart.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np


WIDTH, HEIGHT, MARGIN, BINS = 640, 280, 40, 40
CONFIDENT_COLOR, UNCONFIDENT_COLOR = "#2a7f9e", "#d98032"


def confidence_plot(confidence: Sequence[float | None]) -> str:
    """Histogram of the known confidences, the confident half in one color and the unconfident half in another.

    Args:
        confidence: (n,) values below zero; `None` is left out and counted in the caption.

    Returns:
        An SVG document.

    Raises:
        ValueError: If no confidence is known.
    """
    known = np.array([value for value in confidence if value is not None and not math.isnan(value)])
    if not known.size:
        raise ValueError(f"None of the {len(confidence)} rows has a confidence, so there is nothing to plot.")
    spread = np.log10(np.maximum(-known, 1.0))
    counts, edges = np.histogram(spread, bins=BINS)
    median = float(np.median(spread))
    caption = f"{known.size} rows, median perplexity {10**median:.3g}"
    if known.size < len(confidence):
        caption += f", {len(confidence) - known.size} not measured"
    return _document(_bars(counts, edges, median) + _axis(edges, median) + [_text(WIDTH / 2, 18, caption)])


def save_confidence_plot(confidence: Sequence[float | None], path: str | Path) -> Path:
    """Write the histogram to a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(confidence_plot(confidence), encoding="utf-8")
    return path


def _place(value: float, edges: np.ndarray) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * float((value - edges[0]) / (edges[-1] - edges[0]))


def _bars(counts: np.ndarray, edges: np.ndarray, median: float) -> list[str]:
    drawn = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        height = (HEIGHT - 2 * MARGIN) * count / counts.max()
        color = CONFIDENT_COLOR if (left + right) / 2 <= median else UNCONFIDENT_COLOR
        x, width = _place(left, edges), _place(right, edges) - _place(left, edges)
        y = HEIGHT - MARGIN - height
        drawn.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}"/>')
    return drawn


def _axis(edges: np.ndarray, median: float) -> list[str]:
    bottom = HEIGHT - MARGIN
    at_median = _place(median, edges)
    ticks = [
        _text(_place(value, edges), bottom + 16, f"{10**value:.3g}") for value in np.linspace(edges[0], edges[-1], 5)
    ]
    return [
        f'<line x1="{MARGIN}" y1="{bottom}" x2="{WIDTH - MARGIN}" y2="{bottom}" stroke="#444"/>',
        f'<line x1="{at_median:.1f}" y1="{MARGIN - 10}" x2="{at_median:.1f}" y2="{bottom}" stroke="#444"'
        ' stroke-dasharray="4 3"/>',
        *ticks,
        _text(WIDTH / 2, HEIGHT - 6, "mean perplexity of the response (confident left, unconfident right)"),
    ]


def _text(x: float, y: float, content: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" fill="#333">{content}</text>'


def _document(shapes: Sequence[str]) -> str:
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )
