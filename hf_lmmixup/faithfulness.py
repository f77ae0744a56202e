"""What a distilled row keeps of its sources and what it makes up, as columns and as a filter.

A distillation may rephrase; numbers, names and code in it must stand in one of its sources, and what the sources state
should still be there. Three columns are added::

    {..., "novelty": 0.33, "novel_facts": ["1869"], "coverage": 0.71}

`novelty` is the share of the row's numbers, names and identifiers that no source has, `coverage` the share of the
sources' facts that the row has (`facts.novelty`, `facts.coverage`). `None` means that there was nothing to judge; such
a row is never dropped for it.
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from hf_lmmixup.bounds import FAITHFULNESS, check
from hf_lmmixup.distilled_rows import source_text
from hf_lmmixup.facts import coverage, novel_facts, novelty
from hf_lmmixup.records import Outcome, TaskType
from hf_lmmixup.tables import gathered, places_of, rows_at, table_of, with_columns


logger = logging.getLogger(__name__)

MAX_NOVELTY = 0.25
"""Default of the filter: up to a quarter of the hard facts may be new, for a computed figure or a spelled-out name.
The references of the bundled MIXTURE have 0."""

MIN_COVERAGE = 0.2
"""Default of the filter. Question-answer references of the bundled MIXTURE lie above 0.6, one weak text near 0.46."""

BATCH = 10_000

INVENTED = "faithfulness: facts that no source supports"
LOST = "faithfulness: little of the sources is left"
NO_SOURCE = "faithfulness: a source row is missing"

COLUMNS = Features({"novelty": Value("float32"), "novel_facts": List(Value("string")), "coverage": Value("float32")})


def check_faithfulness(
    distilled: Dataset,
    sources: Dataset,
    *,
    task_type: TaskType | str = TaskType.QA,
    max_novelty: float | None = MAX_NOVELTY,
    min_coverage: float | None = MIN_COVERAGE,
) -> Outcome:
    """Measure every distilled row against its sources and drop the unfaithful ones.

    Args:
        distilled: Rows with `id`, `prompt`, `completion` and `sources`.
        sources: The rows that they were distilled from: `id`, `prompt`, `completion`; more rows do no harm.
        task_type: The form of the texts.
        max_novelty: Largest share of unsupported hard facts; `None` switches this filter off.
        min_coverage: Smallest share of the sources' facts that is kept; `None` switches this filter off.

    Returns:
        The faithful rows with `novelty`, `novel_facts` and `coverage`; for each other row the reason.

    Raises:
        ValueError: If a bound lies outside [0, 1].
    """
    check(FAITHFULNESS, {"max_novelty": max_novelty, "min_coverage": min_coverage})
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    kept: list[int] = []
    dropped: dict[str, str] = {}
    for place, (row, known) in enumerate(_with_sources(distilled, sources, task_type)):
        measure = measured(source_text(row, task_type), known)
        reason = NO_SOURCE if len(known) < len(row["sources"]) else _reason(measure, max_novelty, min_coverage)
        if reason is None:
            kept.append(place)
            for name, values in columns.items():
                values.append(measure[name])
        else:
            dropped[row["id"]] = reason
    logger.info("%d of %d distilled rows are faithful.", len(kept), len(distilled))
    return Outcome(with_columns(rows_at(distilled, kept), columns, COLUMNS), dropped)


def _with_sources(
    distilled: Dataset, sources: Dataset, task_type: TaskType | str
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Each distilled row with the texts of its sources, as far as they are there; a batch is in memory at a time."""
    rows, pairs = table_of(distilled).select(["id", "prompt", "completion", "sources"]), table_of(sources)
    named = pc.list_flatten(rows["sources"])
    places = places_of(named, pairs["id"])
    edges = np.cumsum([0, *pc.list_value_length(rows["sources"]).to_pylist()])
    for begin in range(0, len(rows), BATCH):
        part = rows.slice(begin, BATCH).to_pylist()
        behind = places[edges[begin] : edges[begin + len(part)]]
        found = gathered(pairs.select(["prompt", "completion"]), behind[behind >= 0], BATCH)
        texts = (source_text(row, task_type) for table in found for row in table.to_pylist())
        for number, row in enumerate(part, start=begin):
            own = places[edges[number] : edges[number + 1]]
            yield row, [next(texts) for place in own.tolist() if place >= 0]


def measured(text: str, sources: list[str]) -> dict[str, Any]:
    """The three columns for one text."""
    return {
        "novelty": novelty(text, sources),
        "novel_facts": novel_facts(text, sources),
        "coverage": coverage(text, sources),
    }


def _reason(measure: dict[str, Any], max_novelty: float | None, min_coverage: float | None) -> str | None:
    if max_novelty is not None and measure["novelty"] is not None and measure["novelty"] > max_novelty:
        return INVENTED
    if min_coverage is not None and measure["coverage"] is not None and measure["coverage"] < min_coverage:
        return LOST
    return None
