"""Figures as SVG files, for cards: bars and lines, drawn by hand so that equal figures give equal bytes.

The Hub shows an SVG of a repository inside its card. It has no script and loads nothing, and its colors are readable
on light and dark pages alike.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from hf_lmmixup.figures import Figure, finite


WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 44, 44
"""Margins in pixels."""

COLORS = {
    "@original": "#8892a6",
    "@distilled": "#12998a",
    "@after": "#5b66e0",
    "@dropped": "#c9564f",
    "@series-1": "#7b8494",
    "@series-2": "#12998a",
    "@series-3": "#d08a12",
    "@series-4": "#5b66e0",
    "@series-5": "#c2508f",
}
TEXT, LINE = "#7b8494", "#9aa2b055"
TICKS = 4


def draw(figure: Figure) -> str:
    """A figure of bars or lines as an SVG document.

    Args:
        figure: What to draw; traces on a second axis are left out.

    Returns:
        The text of the file.
    """
    traces = [trace for trace in figure.data if trace["type"] in ("bar", "scatter") and "yaxis" not in trace]
    values = [value for trace in traces for value in trace["y"] if finite(value) is not None]
    low, high = min([0.0, *values]), max([1e-9, *values])
    if all(isinstance(value, int) for value in values) and low == 0:
        high = TICKS * max(1, math.ceil(high / TICKS))  # no ticks between whole numbers
    bars = bool(traces) and traces[0]["type"] == "bar"
    parts = _frame(figure, low, high)
    parts += _bars(traces, low, high) if bars else _lines(traces, low, high)
    parts += _legend(traces)
    body = "\n".join(parts)
    font = "font-family='system-ui, sans-serif' font-size='12'"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' {font}>\n"
        f"<title>{escape(figure.title)}</title>\n{body}\n</svg>\n"
    )


def _frame(figure: Figure, low: float, high: float) -> list[str]:
    """Grid lines with their values, and the names of the axes."""
    parts = []
    for tick in range(TICKS + 1):
        value = low + (high - low) * tick / TICKS
        place = _height(value, low, high)
        label = _number(value, figure.layout.get("yaxis", {}).get("tickformat"))
        parts.append(f"<path d='M{LEFT} {place}H{WIDTH - RIGHT}' stroke='{LINE}'/>")
        parts.append(_text(LEFT - 6, place + 4, label, "end"))
    below = figure.layout.get("xaxis", {}).get("title", "")
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, below, "middle"))
    return parts


def _number(value: float, form: str | None) -> str:
    """What a tick says; thousands have commas and no exponent."""
    if form == ".0%":
        return f"{value:.0%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _bars(traces: Sequence[dict[str, Any]], low: float, high: float) -> list[str]:
    names = list(dict.fromkeys(name for trace in traces for name in trace["x"]))
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    width = 0.8 * slot / max(1, len(traces))
    parts = []
    for place, name in enumerate(names):
        parts.append(_text(LEFT + slot * (place + 0.5), HEIGHT - BOTTOM + 16, name, "middle"))
        for number, trace in enumerate(traces):
            value = dict(zip(trace["x"], map(finite, trace["y"]), strict=True)).get(name)
            if value is not None:
                x = LEFT + slot * (place + 0.1) + width * number
                top, bottom = _height(max(value, 0), low, high), _height(min(value, 0), low, high)
                size = f"x='{x:.1f}' y='{top}' width='{width:.1f}' height='{bottom - top:.1f}'"
                parts.append(f"<rect {size} fill='{_color(trace)}'/>")
    return parts


def _lines(traces: Sequence[dict[str, Any]], low: float, high: float) -> list[str]:
    steps = [step for trace in traces for step in trace["x"]] or [0]
    first, last = min(steps), max(steps)
    span = max(1, last - first)
    parts = [
        _text(LEFT, HEIGHT - BOTTOM + 16, f"{first}", "start"),
        _text(WIDTH - RIGHT, HEIGHT - BOTTOM + 16, f"{last}", "end"),
    ]
    for trace in traces:
        points = " ".join(
            f"{LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / span:.1f},{_height(value, low, high)}"
            for step, value in zip(trace["x"], trace["y"], strict=True)
        )
        parts.append(f"<polyline points='{points}' fill='none' stroke='{_color(trace)}' stroke-width='2.5'/>")
    return parts


def _legend(traces: Sequence[dict[str, Any]]) -> list[str]:
    parts, x = [], float(LEFT)
    for trace in traces if len(traces) > 1 else []:
        parts.append(f"<rect x='{x:.0f}' y='14' width='12' height='12' fill='{_color(trace)}'/>")
        parts.append(_text(x + 17, 24, trace["name"], "start"))
        x += 34 + 6.6 * len(trace["name"])
    return parts


def _color(trace: dict[str, Any]) -> str:
    return COLORS.get(trace.get("line", trace.get("marker", {})).get("color", ""), TEXT)


def _height(value: float, low: float, high: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 1)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{TEXT}'>{escape(str(text))}</text>"
