"""The report of a run: one HTML page that opens anywhere, without a network and without this package.

    save_report(render_report(facts), directory / "report.html")

`facts` is what `facts.json` of a run directory holds. Whatever the run did not do is left out of the page. Texts
of rows are shown, never interpreted: the template escapes all of them, and the page forbids itself to load anything.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_lmmixup.card_markup import templates
from hf_lmmixup.cards import ledger_rows
from hf_lmmixup.differences import compare
from hf_lmmixup.figures import MISSING, Figure, by_model, decimal
from hf_lmmixup.fingerprint import flatten
from hf_lmmixup.run_figures import figure_sections
from hf_lmmixup.secrecy import public_settings
from hf_lmmixup.training_figures import reward_edges


TEMPLATE = "report.html.jinja"

NARROW = 560
"""Pixels of a page below which figures and tables take their narrow form."""

LONGEST_TEXT = 6_000
"""Characters of one text that the page shows."""

MISSING_PLOTLY = 'The report needs plotly, which is not installed: pip install "hf-lmmixup[report]"'


def save_report(page: str, path: Path) -> None:
    """Write the page; one that does not fit on the disk leaves the old one as it was."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def render_report(facts: Mapping[str, Any]) -> str:
    """One self-contained page about a run.

    Args:
        facts: The facts of a run directory; see `facts.json`.

    Returns:
        HTML. It holds the drawing library (4.8 MB) and asks for nothing from outside.

    Raises:
        ImportError: If plotly is not installed.
    """
    environment = templates(autoescape=True)
    environment.filters |= {"clip": _clip, "compare": _compare}
    environment.filters["parts"] = re.compile(r"[^._]*[._]?").findall
    sections = figure_sections(facts)
    html = environment.get_template(TEMPLATE).render(
        facts=facts,
        name=_one_line(facts.get("name", "run")),
        headline=_headline(facts),
        notes=(facts.get("ledger") or {}).get("notes") or [],
        ledger=_ledger_rows(facts),
        tiles=_tiles(facts),
        sections=sections,
        examples=facts.get("examples") or [],
        settings=_settings(facts),
        versions=facts.get("versions") or {},
        figures=_json([_drawn(figure) for _, figures in sections for figure in figures]),
        narrow=NARROW,
        plotly=_plotly(),
    )
    return html.encode("utf-8", "replace").decode("utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(MISSING_PLOTLY) from error
    return str(get_plotlyjs())


def _headline(facts: Mapping[str, Any]) -> str:
    rows, ledger = facts["rows"], facts["ledger"]
    parts = [f"{rows['in']:,} rows went in and {rows['out']:,} came out"]
    if rows.get("distilled"):
        merged = ledger.get("merged", 0)
        parts.append(
            f"{rows.get('original', 0):,} as they were and {rows['distilled']:,} distilled from {merged:,} weak ones"
        )
    elif rows["out"]:
        parts.append("all as they were; none was distilled")
    return ": ".join(parts) + "."


def _ledger_rows(facts: Mapping[str, Any]) -> list[tuple[str, str, int, float]]:
    """State, detail, rows and share of all rows, for every state that a raw row can end in."""
    total = max(1, facts["ledger"]["rows_in"])
    return [(state, _one_line(detail), count, count / total) for state, detail, count in ledger_rows(facts)]


def _tiles(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Label, figure and remark of the numbers at the top."""
    rows = facts["rows"]
    share = f"{rows['out'] / rows['in']:.0%} of the rows that went in" if rows["in"] else ""
    tiles = [("rows in", f"{rows['in']:,}", ""), ("rows out", f"{rows['out']:,}", share)]
    judged = {state: decimal(result.get("format"), 2) for state, result in by_model(facts, "held_out").items()}
    if any(value != MISSING for value in judged.values()):
        tiles.append(("format reward, held-out", " → ".join(judged.values()), " → ".join(judged)))
    for title, history in by_model(facts, "histories").items():
        edges = reward_edges(history)
        if edges is not None:
            tiles.append(
                (
                    f"{_one_line(title)} total reward",
                    f"{decimal(edges.start)} → {decimal(edges.end)}",
                    f"mean of the first and the last {edges.points} logged steps",
                )
            )
    return tiles


def _drawn(figure: Figure) -> dict[str, Any]:
    """What the page's script needs of a figure."""
    drawn: dict[str, Any] = {"name": figure.name, "data": figure.data, "layout": figure.layout, "steps": figure.steps}
    if figure.narrow is not None:
        drawn["narrow"] = {"data": figure.narrow.data, "layout": figure.narrow.layout}
    return drawn


def _compare(text: Any, others: list[Any]) -> list[tuple[str, bool]]:
    """A text as it is shown, in pieces, each with whether its words occur in other texts."""
    return compare(_clip(text), map(_clip, others))


def _settings(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A recipe as dotted names and values."""
    settings = flatten(public_settings(facts.get("recipe") or {}))
    return [(name, MISSING if value is None else str(value)) for name, value in settings.items()]


def _json(value: Any) -> str:
    """JSON that no text can end the script element of: every `<`, `>` and `&` is written as an escape."""
    text = json.dumps(_without_nan(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def _clip(value: Any) -> str:
    """A row's text, or its messages one below the other; very long ones are cut, and say so."""
    if isinstance(value, list | tuple):
        value = "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in value)
    text = "" if value is None else str(value)
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]} … ({len(text) - LONGEST_TEXT:,} more characters)"


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())
