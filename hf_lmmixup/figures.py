"""A figure of a run's report as plain data: what is drawn, and the same numbers as a table beside it.

A figure never needs a drawing library: it is a dict that a browser draws. One figure::

    Figure("cluster-sizes", "Rows per cluster", "...", [{"type": "bar", "x": ["2", "3"], "y": [41, 77]}], {...},
           ["rows", "clusters"], [["2", "41"], ["3", "77"]])

The form of traces and layouts is Plotly's (https://plotly.com/javascript/reference). Colors are names of the page's
own palette, such as `@distilled`, so that one figure serves light and dark pages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


Facts = Mapping[str, Any]

ORIGINAL, DISTILLED, AFTER, DROPPED, INK = "@original", "@distilled", "@after", "@dropped", "@ink"
SERIES = ("@series-1", "@series-2", "@series-3", "@series-4", "@series-5")

MISSING = "–"
"""What a table shows where nothing is known."""

LYING_BAR, LYING_MARGIN = 11, 130
"""Pixels of a lying bar, and of legend and axis around all of them."""

REWARDS = ("format", "alignment", "quality", "coverage", "total")
"""The rewards that are shown, of a distiller or of a training."""

TEST_SCORES = (*REWARDS, "rouge_l", "token_similarity", "length", "rating")
"""Scores of `lmmixup evaluate`: the rewards, nearness to the reference, characters of the answer, and the score (0-5)
that a chat model gives."""


@dataclass(frozen=True)
class Narrow:
    """What a narrow page draws: traces, axes, and pixels of height."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: Its anchor on the page.
        title: What it shows.
        caption: How to read it.
        data: Traces.
        layout: Axes and margins.
        columns: Head of the table with the same numbers.
        rows: Cells of that table.
        height: Pixels.
        narrow: What a page as narrow as a telephone draws instead, where that must differ.
        steps: Whether the arrow keys go through its points.
        wide: Whether it takes the width of the page.
        open: Whether its table is shown from the start.
    """

    name: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    columns: list[str]
    rows: list[list[str]]
    height: int = 320
    narrow: Narrow | None = None
    steps: bool = False
    wide: bool = False
    open: bool = False


def by_model(facts: Facts, name: str) -> dict[str, Any]:
    """Facts that belong to states of the distiller, in the order of its training: JSON files are sorted by name."""
    given = facts.get(name) or {}
    return {state: given[state] for state in facts.get("models") or [] if state in given} | dict(given)


def finite(value: Any) -> float | None:
    """A number, unless it is none, infinite or no number at all."""
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if known else None


def decimal(value: Any, digits: int = 3) -> str:
    """A number with some decimals; a dash where there is none."""
    number = finite(value)
    return MISSING if number is None else f"{number:.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """A change, with its sign."""
    return f"{value:+.3f}".replace("-", "−")


def category(title: str) -> dict[str, Any]:
    """An axis of names."""
    return {"title": title, "type": "category"}


def lying(data: list[dict[str, Any]], layout: Mapping[str, Any]) -> Narrow:
    """Grouped bars turned to lie one below the other: on a narrow page their names would not fit side by side.

    Args:
        data: Bars with names as `x`, whose hover templates name `%{x}` and `%{y}`.
        layout: Their axes.

    Returns:
        The same bars, first name on top.
    """
    bars = [
        bar
        | {"orientation": "h", "x": bar["y"], "y": bar["x"]}
        | {"hovertemplate": bar["hovertemplate"].replace("%{x", "%{?").replace("%{y", "%{x").replace("%{?", "%{y")}
        for bar in data
    ]
    names = max((len(bar["y"]) for bar in bars), default=0)
    axes = {"xaxis": layout["yaxis"], "yaxis": {**layout["xaxis"], "autorange": "reversed"}}
    return Narrow(bars, {**layout, **axes}, LYING_MARGIN + LYING_BAR * names * (len(bars) + 1))


def number_key(text: str) -> tuple[int, float, str]:
    """A sort key: numbers by value, then everything else by name."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def capital(title: str) -> str:
    """A title with a capital at its start."""
    return title[:1].upper() + title[1:]


def slug(title: str) -> str:
    """A title as part of an anchor."""
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def plain(text: str) -> str:
    """A text where `<`, `{` and `%` would have a meaning: in hover templates and labels."""
    return "".join(" " if character in "<>{}%&" else character for character in text)


def score_title(name: str) -> str:
    """What tables and axes call a score of `TEST_SCORES`."""
    return "ROUGE-L" if name == "rouge_l" else name.replace("_", " ")


def score_text(name: str, value: Any) -> str:
    """A mean score as tables show it; a length is whole characters."""
    number = finite(value)
    return f"{number:.0f}" if name == "length" and number is not None else decimal(value)


def given_scores(systems: Sequence[Mapping[str, Any]]) -> list[str]:
    """The scores that `lmmixup evaluate` gave some systems, in the order of `TEST_SCORES`."""
    return [name for name in TEST_SCORES if any(name in system["means"] for system in systems)]
