"""Figures about the rows of a run: scores, clusters, the ledger as a flow, score transitions, the map of clusters."""

from collections.abc import Iterable, Mapping
from typing import Any

from hf_lmmixup.figures import (
    AFTER,
    DISTILLED,
    DROPPED,
    ORIGINAL,
    Facts,
    Figure,
    Narrow,
    category,
    decimal,
    number_key,
    plain,
    slug,
)


CLASSES = ("0", "1", "2", "3", "4", "5")
"""The scores that a row can have (arXiv 2510.20449); a row that was not judged is `none`."""

LONGEST_LABEL = 84
"""Characters of a reason that a flow shows; the ledger beside it has all of them."""

REASONS = 7
"""Place of the first reason among the nodes of a flow."""

LABEL_LINE, NARROW_LINE = 45, 15
"""Characters of one line of such a reason, on wide and on narrow pages."""

LONGEST_HOVER = 160
"""Characters of a row that the map shows."""

LISTED_CLUSTERS = 25
"""Clusters that the table of the map names."""


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
        "Share of the rows with each score, 0 (poor) to 5 (excellent). A score is an estimate; none checks whether a "
        "text is true or makes sense: read the clusters side by side.",
        data,
        {"barmode": "group", "xaxis": category("score"), "yaxis": {"title": "share of rows", "tickformat": ".0%"}},
        ["score", *(label for label, _, _ in shown)],
        [[value, *(f"{counts.get(value, 0):,}" for _, _, counts in shown)] for value in classes],
    )


def cluster_sizes(facts: Facts) -> Figure | None:
    """How many clusters have each number of rows."""
    counts = facts.get("cluster_sizes") or {}
    if not counts:
        return None
    sizes = sorted(counts, key=number_key)
    numbers = [counts[size] for size in sizes]
    return Figure(
        "cluster-sizes",
        "Rows per cluster",
        f"{sum(numbers):,} clusters of weak rows; each is distilled into one.",
        [{"type": "bar", "x": sizes, "y": numbers, "marker": {"color": DISTILLED}, "name": "clusters"}],
        {"xaxis": category("rows in the cluster"), "yaxis": {"title": "clusters"}},
        ["rows in the cluster", "clusters"],
        [[size, f"{counts[size]:,}"] for size in sizes],
    )


def ledger_flow(facts: Facts) -> Figure | None:
    """Where the raw rows went, as bands as wide as their number."""
    ledger = facts.get("ledger") or {}
    dropped = ledger.get("dropped") or {}
    if not ledger.get("rows_in"):
        return None
    made = [f"{ledger['kept']:,} original rows", f"{ledger.get('distilled_rows', 0):,} distilled rows"]
    labels = ["raw rows", "kept", "merged", "dropped", *made, "dataset"]  # as many as REASONS, which come next
    labels += [_words(plain(reason), LONGEST_LABEL) for reason in dropped]
    colors = [ORIGINAL, ORIGINAL, DISTILLED, DROPPED, ORIGINAL, DISTILLED, AFTER, *([DROPPED] * len(dropped))]
    bands = [(0, 1, ledger["kept"]), (0, 2, ledger["merged"]), (0, 3, sum(dropped.values()))]
    bands += [(1, 4, ledger["kept"]), (2, 5, ledger["merged"]), (4, 6, ledger["kept"]), (5, 6, ledger["merged"])]
    bands += [(3, REASONS + place, count) for place, count in enumerate(dropped.values())]
    bands = [band for band in bands if band[2]]
    return Figure(
        "flow",
        "Where the rows went",
        "Each band is as wide as the number of raw rows in it.",
        [_flow(labels, colors, bands, LABEL_LINE)],
        _room(labels, LABEL_LINE),
        ["from", "to", "raw rows"],
        [[labels[source], labels[target], f"{count:,}"] for source, target, count in bands],
        height=max(300, 80 + 40 * len(dropped)),
        narrow=Narrow(
            [_flow(labels, colors, bands, NARROW_LINE)], _room(labels, NARROW_LINE), 240 + 80 * len(dropped)
        ),
        wide=True,
    )


def _flow(labels: list[str], colors: list[str], bands: list[tuple[int, int, int]], width: int) -> dict[str, Any]:
    """Bands (from, to, rows) between named nodes, whose names are broken into lines."""
    names = [_wrapped(label, width) for label in labels]
    return {
        "type": "sankey",
        "arrangement": "snap",
        "textfont": {"size": 13 if width == LABEL_LINE else 11},
        "node": {
            "label": ["<br>".join(lines) for lines in names],
            "color": colors,
            "pad": 14 * max(map(len, names)),
            "thickness": 14,
            "align": "left",
            "line": {"width": 0},
        },
        "link": {
            "source": [source for source, _, _ in bands],
            "target": [target for _, target, _ in bands],
            "value": [count for _, _, count in bands],
            "color": ["@band"] * len(bands),
        },
        "valueformat": ",d",
        "valuesuffix": " raw rows",
    }


def _room(labels: list[str], width: int) -> dict[str, Any]:
    """Room above and below a flow for names of several lines, which stand beside the middle of their nodes."""
    lines = [len(_wrapped(label, width)) for label in labels]
    return {"margin": {"l": 8, "r": 8, "t": 8 * max(lines[:REASONS]), "b": 8 * max(lines)}}


def score_transitions(facts: Facts) -> list[Figure]:
    """How the scores of neighbors go together, per task type.

    `facts["transitions"]`: task type -> `classes`, `matrix` (row: own score, column: a neighbor's) and `prior`.
    """
    figures = []
    for name, transition in (facts.get("transitions") or {}).items():
        classes = [f"{value}" for value in transition["classes"]]
        matrix = transition["matrix"]
        heat: dict[str, Any] = {
            "type": "heatmap",
            "x": classes,
            "y": classes,
            "z": matrix,
            "zmin": 0,
            "zmax": 1,
            "colorscale": [[0, "@card"], [1, DISTILLED]],
            "showscale": False,
            "xgap": 2,
            "ygap": 2,
            "text": [[f"{value:.2f}" for value in row] for row in matrix],
            "texttemplate": "%{text}",
            "hovertemplate": "beside score %{y}: score %{x} in %{z:.1%}<extra></extra>",
        }
        axes = {"xaxis": category("score of a neighbor"), "yaxis": {**category("own score"), "autorange": "reversed"}}
        rows = [[value, *(decimal(cell, 2) for cell in row)] for value, row in zip(classes, matrix, strict=True)]
        priors = ["share", *(decimal(value, 2) for value in transition["prior"])]
        figures.append(
            Figure(
                f"transition-{slug(str(name))}",
                f"Score transitions: {name}",
                "How often a row of the datastore with the score of a line has a neighbor with that of a column; the "
                "judge reads the scores around a text by it. The last line of the table is how common each score is.",
                [heat],
                axes,
                ["own ↓ neighbor →", *classes],
                [*rows, priors],
                height=340,
            )
        )
    return figures


def cluster_map(facts: Facts) -> Figure | None:
    """Rows of clusters and their distillations in two dimensions; pointing at one shows its text.

    `facts["map"]`: equally long lists `x`, `y`, `cluster`, `score`, `kind` (`source` or `distilled`) and `text`.
    """
    points = facts.get("map") or {}
    if not points.get("x"):
        return None
    rows = list(zip(*(points[name] for name in ("x", "y", "cluster", "score", "kind", "text")), strict=True))
    data = [
        _dots([row for row in rows if row[4] == "source"], "weak rows", ORIGINAL, "circle", 6),
        _dots([row for row in rows if row[4] == "distilled"], "distilled rows", DISTILLED, "diamond", 9),
    ]
    bare = {"showticklabels": False, "zeroline": False, "showgrid": False}
    numbers = sorted({row[2] for row in rows})[:LISTED_CLUSTERS]
    table = [
        [f"{number}", f"{sum(row[2] == number and row[4] == 'source' for row in rows)}", _words(named[0], 90)]
        for number in numbers
        if (named := [row[5] for row in rows if row[2] == number])
    ]
    return Figure(
        "map",
        "Map of the clusters",
        "Similar rows lie near each other: the two directions in which the embeddings differ most. A diamond is what "
        "the distiller made of the weak rows around it. Point at one to read it, or take the arrow keys.",
        data,
        {"xaxis": bare, "yaxis": bare, "hovermode": "closest"},
        ["cluster", "weak rows shown", "one of its rows"],
        table,
        height=460,
        steps=True,
        wide=True,
    )


def _dots(rows: list[tuple[Any, ...]], label: str, color: str, symbol: str, size: int) -> dict[str, Any]:
    """Points of the map as one trace."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{label} ({len(rows):,})",
        "x": [row[0] for row in rows],
        "y": [row[1] for row in rows],
        "text": [_hover(row) for row in rows],
        "customdata": [row[2] for row in rows],
        "hoverinfo": "text",
        "marker": {"color": color, "symbol": symbol, "size": size, "opacity": 0.75},
    }


def _classes(counts: Iterable[Mapping[str, int]]) -> list[str]:
    found = {value for count in counts for value in count}
    known = sorted(found | set(CLASSES) - {"none"}, key=number_key)
    return [value for value in known if value != "none"] + (["none"] if "none" in found else [])


def _hover(row: tuple[Any, ...]) -> str:
    """A row's text as a hover label, which knows a little HTML: nothing of that may come from the row."""
    lines = _wrapped(_words(str(row[5]), LONGEST_HOVER))
    score = "not judged" if row[3] is None else f"score {row[3]}"
    escaped = [line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for line in lines]
    return "<br>".join([f"<b>cluster {int(row[2])}, {score}</b>", *escaped])


def _words(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _wrapped(text: str, width: int = 48) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
