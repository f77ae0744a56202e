"""The inspection of clusters as one HTML page: how alike their rows are, how large they are, where they lie.

    Path("clusters.html").write_text(render_inspection(inspect(clustered, embeddings), "pile"), encoding="utf-8")

The page opens anywhere, loads nothing and runs nothing: its figures are SVG, its texts are escaped.
"""

from collections.abc import Mapping
from typing import Any

from hf_lmmixup.card_markup import templates
from hf_lmmixup.drawings import draw
from hf_lmmixup.figures import DISTILLED, Figure, category, decimal


TEMPLATE = "clusters.html.jinja"

WIDTH, HEIGHT, MARGIN = 720, 480, 12
"""Pixels of the map."""

LONGEST_TEXT = 1_500
"""Characters of one text that the page shows."""


def render_inspection(inspection: Mapping[str, Any], name: str) -> str:
    """One self-contained page about clusters.

    Args:
        inspection: What `inspection.inspect` returned.
        name: What the rows are called.

    Returns:
        HTML.
    """
    environment = templates(autoescape=True)
    environment.filters |= {"decimal": decimal, "clip": _clip}
    html = environment.get_template(TEMPLATE).render(
        name=name,
        inspection=inspection,
        sizes=draw(_sizes(inspection)),
        cohesion=draw(_cohesion(inspection)),
        map=_map(inspection["map"]),
    )
    return html.encode("utf-8", "replace").decode("utf-8")


def _sizes(inspection: Mapping[str, Any]) -> Figure:
    return _bars("Rows per cluster", list(inspection["sizes"]), list(inspection["sizes"].values()))


def _cohesion(inspection: Mapping[str, Any]) -> Figure:
    found = inspection["cohesion"]
    return _bars("Mean cosine within a cluster", [f"{edge:.2f}" for edge in found["edges"][:-1]], found["counts"])


def _bars(title: str, names: list[str], counts: list[int]) -> Figure:
    bars = [{"type": "bar", "x": names, "y": counts, "marker": {"color": DISTILLED}, "name": "clusters"}]
    return Figure(title.lower().replace(" ", "-"), title, "", bars, {"xaxis": category(title)}, [], [])


def _map(points: Mapping[str, list[Any]]) -> str:
    """The rows on two principal components; rows without a cluster are hollow."""
    scaled = [_scaled(points["x"], WIDTH), _scaled(points["y"], HEIGHT)]
    colors = {True: "#12998a", False: "none"}
    parts = [
        f"<circle cx='{x}' cy='{HEIGHT - y:.1f}' r='2.5' fill='{colors[number is not None]}' stroke='#8892a6' "
        "stroke-width='0.4' fill-opacity='0.6'/>"
        for x, y, number in zip(*scaled, points["cluster_id"], strict=True)
    ]
    body = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>\n"
        f"<title>Map of the rows</title>\n{body}\n</svg>"
    )


def _scaled(values: list[float], length: int) -> list[float]:
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    return [round(MARGIN + (length - 2 * MARGIN) * (value - low) / ((high - low) or 1), 1) for value in values]


def _clip(text: Any) -> str:
    shown = "" if text is None else str(text)
    return shown if len(shown) <= LONGEST_TEXT else f"{shown[:LONGEST_TEXT]} …"
