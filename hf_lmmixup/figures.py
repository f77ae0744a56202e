"""The figures of a run's report as plain data: what is drawn, and the same numbers as a table beside it.

A figure never needs the drawing library: it is a dict that a browser draws. One figure::

    Figure("cluster-sizes", "Rows per cluster", "...", [{"type": "bar", "x": ["2", "3"], "y": [41, 77]}], {...},
           ["rows", "clusters"], [["2", "41"], ["3", "77"]])

The form of traces and layouts is Plotly's (https://plotly.com/javascript/reference). Colors are names of the page's
own palette, such as `@distilled`, so that one figure serves light and dark pages.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


Facts = Mapping[str, Any]

ORIGINAL, DISTILLED, AFTER, DROPPED, INK = "@original", "@distilled", "@after", "@dropped", "@ink"

CLASSES = ("0", "1", "2", "3", "4", "5")
"""The scores that a row can have (arXiv 2510.20449); a row that was not judged is `none`."""

REWARDS = ("format", "alignment", "quality", "coverage", "total")
SERIES = ("@series-1", "@series-2", "@series-3", "@series-4", "@series-5")

EDGE_SHARE = 0.2
"""Share of the logged steps at either end that stand for the start and the end of a training."""


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
        wide: Whether it takes the width of the page.
    """

    name: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    columns: list[str]
    rows: list[list[str]]
    height: int = 320
    wide: bool = False


@dataclass(frozen=True)
class Edges:
    """A quantity at the start and at the end of a training: means over the first and last logged steps."""

    start: float
    end: float
    points: int = field(default=1)


def score_histogram(facts: Facts) -> Figure | None:
    """Shares of the scores before, among the distilled rows, and after."""
    scores = facts.get("scores") or {}
    shown = [
        (label, color, scores[name])
        for name, label, color in (
            ("before", "raw rows", ORIGINAL),
            ("distilled", "distilled rows", DISTILLED),
            ("after", "finished dataset", AFTER),
        )
        if scores.get(name)
    ]
    if not shown:
        return None
    classes = _classes(counts for _, _, counts in shown)
    data = []
    for label, color, counts in shown:
        total = sum(counts.values())
        numbers = [counts.get(value, 0) for value in classes]
        data.append(
            {
                "type": "bar",
                "name": f"{label} ({total:,})",
                "x": classes,
                "y": [number / total for number in numbers],
                "customdata": numbers,
                "hovertemplate": "score %{x}: %{customdata:,} rows (%{y:.1%})<extra>" + label + "</extra>",
                "marker": {"color": color},
            }
        )
    return Figure(
        "scores",
        "Scores before and after",
        "Share of the rows with each score, 0 (poor) to 5 (excellent).",
        data,
        {"barmode": "group", "xaxis": _category("score"), "yaxis": {"title": "share of rows", "tickformat": ".0%"}},
        ["score", *(label for label, _, _ in shown)],
        [[value, *(f"{counts.get(value, 0):,}" for _, _, counts in shown)] for value in classes],
    )


def cluster_sizes(facts: Facts) -> Figure | None:
    """How many clusters have each number of rows."""
    counts = facts.get("cluster_sizes") or {}
    if not counts:
        return None
    sizes = sorted(counts, key=_number)
    numbers = [counts[size] for size in sizes]
    return Figure(
        "cluster-sizes",
        "Rows per cluster",
        f"{sum(numbers):,} clusters of weak rows; each is distilled into one.",
        [{"type": "bar", "x": sizes, "y": numbers, "marker": {"color": DISTILLED}, "name": "clusters"}],
        {"xaxis": _category("rows in the cluster"), "yaxis": {"title": "clusters"}},
        ["rows in the cluster", "clusters"],
        [[size, f"{counts[size]:,}"] for size in sizes],
    )


def held_out_rewards(facts: Facts) -> Figure | None:
    """Mean rewards on held-out prompts, by state of the distiller."""
    judged = facts.get("held_out") or {}
    names = [name for name in REWARDS if any(result.get(name) is not None for result in judged.values())]
    if not names:
        return None
    colors = [ORIGINAL, DISTILLED, AFTER, *SERIES]
    data = [
        {
            "type": "bar",
            "name": state,
            "x": names,
            "y": [_finite(result.get(name)) for name in names],
            "marker": {"color": colors[place % len(colors)]},
            "hovertemplate": "%{x}: %{y:.3f}<extra>" + _plain(state) + "</extra>",
        }
        for place, (state, result) in enumerate(judged.items())
    ]
    prompts = max(int(result.get("prompts") or 0) for result in judged.values())
    return Figure(
        "held-out",
        "Rewards on held-out prompts",
        f"Means over {prompts:,} prompts of topics that no training saw. A dash: the reward abstained.",
        data,
        {"barmode": "group", "xaxis": _category(""), "yaxis": {"title": "mean reward", "rangemode": "tozero"}},
        ["state of the distiller", *names],
        [[state, *(_decimal(result.get(name)) for name in names)] for state, result in judged.items()],
        wide=True,
    )


def reward_curves(title: str, history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The total reward of a GRPO training and its components, by step."""
    keys = [key for key in _keys(history) if key.startswith("rewards/") and key.endswith("/mean")]
    curves = [("total", "reward"), *((_component(key), key) for key in keys)]
    lines = [(name, *series(history, key)) for name, key in curves]
    lines = [line for line in lines if line[1]]
    if not lines:
        return None
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(steps) < 60 else "lines",
            "name": name,
            "x": steps,
            "y": values,
            "line": {"color": SERIES[place % len(SERIES)], "width": 3.5 if name == "total" else 2},
            "marker": {"size": 6 if name == "total" else 5},
            "hovertemplate": "step %{x}: %{y:.3f}<extra>" + _plain(name) + "</extra>",
        }
        for place, (name, steps, values) in enumerate(lines)
    ]
    rows = []
    for name, _, values in lines:
        ends = _edges(values)
        rows.append([name, _decimal(ends.start), _decimal(ends.end), _signed(ends.end - ends.start)])
    points = _edges(lines[0][2]).points
    return Figure(
        f"rewards-{_slug(title)}",
        f"{_capital(title)}: rewards by component",
        f"Mean reward of the sampled completions at each logged step; the total is their weighted sum. In the table, "
        f"start and end are means over the first and the last {points} logged steps.",
        data,
        {"xaxis": {"title": "step"}, "yaxis": {"title": "mean reward"}},
        ["reward", "start", "end", "change"],
        rows,
        height=360,
    )


def loss_curve(title: str, history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The training loss by step, and the share of tokens guessed right where it was logged."""
    steps, losses = series(history, "loss")
    if not steps:
        return None
    line = {"color": DISTILLED, "width": 2.5}
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "name": "loss", "x": steps, "y": losses, "line": line}
    ]
    layout: dict[str, Any] = {"xaxis": {"title": "step"}, "yaxis": {"title": "loss", "rangemode": "tozero"}}
    rows = [["loss", _decimal(losses[0]), _decimal(losses[-1])]]
    accuracy_steps, accuracies = series(history, "mean_token_accuracy")
    if accuracies:
        line = {"color": AFTER, "width": 2, "dash": "dot"}
        name = "token accuracy (right axis)"
        data.append({"type": "scatter", "mode": "lines", "name": name, "x": accuracy_steps, "y": accuracies})
        data[-1] |= {"yaxis": "y2", "line": line}
        layout["yaxis2"] = {"overlaying": "y", "side": "right", "tickformat": ".0%", "range": [0, 1]}
        layout["yaxis2"]["showgrid"] = False
        rows.append(["token accuracy", _decimal(accuracies[0]), _decimal(accuracies[-1])])
    return Figure(
        f"loss-{_slug(title)}",
        f"{_capital(title)}: loss",
        "Loss on the completions of the training batches, at each logged step.",
        data,
        layout,
        ["quantity", "first", "last"],
        rows,
    )


def reward_edges(history: Sequence[Mapping[str, Any]], key: str = "reward") -> Edges | None:
    """A reward at the start and at the end of a training; None if it was not logged twice.

    Args:
        history: Log entries of the trainer.
        key: Which quantity.

    Returns:
        Means over the first and the last fifth of the logged steps, at least one each.
    """
    values = series(history, key)[1]
    return _edges(values) if len(values) > 1 else None


def series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """The steps at which a quantity was logged as a finite number, and its values."""
    known = [(entry["step"], value) for entry in history if (value := _finite(entry.get(key))) is not None]
    return [step for step, _ in known], [value for _, value in known]


def _edges(values: Sequence[float]) -> Edges:
    points = max(1, int(EDGE_SHARE * len(values)))
    return Edges(sum(values[:points]) / points, sum(values[-points:]) / points, points)


def _keys(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for entry in history for key in entry))


def _component(key: str) -> str:
    """`rewards/quality_reward/mean` -> `quality`."""
    return key.removeprefix("rewards/").removesuffix("/mean").removesuffix("_reward")


def _classes(counts: Iterable[Mapping[str, int]]) -> list[str]:
    found = {value for count in counts for value in count}
    known = sorted(found | set(CLASSES) - {"none"}, key=_number)
    return [value for value in known if value != "none"] + (["none"] if "none" in found else [])


def _number(text: str) -> tuple[int, float, str]:
    """A sort key: numbers by value, then everything else by name."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _decimal(value: Any) -> str:
    number = _finite(value)
    return "–" if number is None else f"{number:.3f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _category(title: str) -> dict[str, Any]:
    return {"title": title, "type": "category"}


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def _slug(title: str) -> str:
    return "-".join(part for part in "".join(c if c.isalnum() else " " for c in title.lower()).split())


def _plain(text: str) -> str:
    """A name inside a hover template, where `<`, `{` and `%` have a meaning."""
    return "".join(" " if character in "<>{}%&" else character for character in text)
