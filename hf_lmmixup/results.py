"""The end of a run: which rows make the dataset, what became of all the others, and the files that say so."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from datasets import Dataset

from hf_lmmixup.cards import render_dataset_card, with_local_paths
from hf_lmmixup.ledger import DROPPED, MERGED, Ledger
from hf_lmmixup.recipe import Recipe, SelectRecipe
from hf_lmmixup.records import Outcome
from hf_lmmixup.report import render_report, save_report
from hf_lmmixup.run_directory import FACTS, LEDGER_ROWS, REPORT, RunDirectory, write_json
from hf_lmmixup.selection import merge, min_max, select
from hf_lmmixup.stages import costs_of, read_plan
from hf_lmmixup.tables import GATHERED, dataset_of, gathered, places_of, table_of, with_columns


logger = logging.getLogger(__name__)

ROWS_PER_SHARD = 50_000
"""The texts of one shard are in memory at a time."""

WRITTEN = ("prompt", "completion", "reasoning", "source", "distiller", "prompt_hash")
"""Columns of the dataset that nothing is chosen by: they are read when the dataset is written."""

EXAMPLES = 10
"""Clusters that the report shows beside their distillation."""

LOST = "distilled row not in the dataset: "


@dataclass(frozen=True)
class Chosen:
    """Which rows make the dataset.

    Attributes:
        originals: Ids of the original rows that stood for election.
        merged: The dataset, and why the other candidates are not in it.
        notes: What must be said about the choice.
    """

    originals: list[str]
    merged: Outcome
    notes: list[str]


@dataclass(frozen=True)
class Results:
    """Everything that the files of a finished run are made from; `merged` has no texts yet."""

    merged: Dataset
    ledger: Ledger
    rated: Dataset
    loaded: Outcome
    clustered: Outcome
    rescored: Dataset
    held_out: dict[str, dict[str, Any]]
    histories: dict[str, list[dict[str, Any]]]
    models: list[tuple[str, str]]
    versions: dict[str, str]
    points: dict[str, list[Any]]
    transitions: dict[str, dict[str, Any]]


def choose(
    originals: Dataset,
    rarity: np.ndarray,
    distilled: Dataset,
    distilled_rarity: np.ndarray,
    options: SelectRecipe,
) -> Chosen:
    """Keep the distilled rows that score high enough and merge them with the originals.

    Args:
        originals: Rows to keep as they are; here and below the columns of `WRITTEN` are not looked at.
        rarity: Their long-tail scores among all rows read (n,).
        distilled: Distilled rows with `score`.
        distilled_rarity: Their long-tail scores among themselves (m,).
        options: Thresholds and sizes.

    Returns:
        The choice. Where no distilled row reaches the minimum, the best share of them is kept, at least one row unless
        the share is 0, and a note says so.
    """
    notes = []
    candidates, distilled = (
        with_columns(
            rows.select_columns([name for name in rows.column_names if name not in WRITTEN]),
            {"long_tail_score": pa.array(min_max(scores), pa.float32())},
        )
        for rows, scores in ((originals, rarity), (distilled, distilled_rarity))
    )
    ranked = select(distilled, min_score=options.min_score)
    if not len(ranked.dataset) and len(distilled):
        size = max(1, round(options.fallback_share * len(distilled))) if options.fallback_share else 0
        best = select(distilled, min_score=None, size=size)
        # Those that the fallback leaves out are out for their score, not for a size.
        ranked = Outcome(best.dataset, {row: ranked.dropped[row] for row in best.dropped})
        kept = f"the best {size} of {len(distilled)} were kept by score instead" if size else "none was kept"
        notes.append(f"No distilled row scored {options.min_score} or more; {kept}.")
    merged = merge(candidates, ranked.dataset, size=options.size, distilled_share=options.distilled_share)
    return Chosen(originals["id"][:], Outcome(merged.dataset, ranked.dropped | merged.dropped), notes)


def account(
    loaded: Outcome,
    left: dict[str, str],
    clustered: Outcome,
    distilled: Outcome,
    unfaithful: dict[str, str],
    chosen: Chosen,
) -> Ledger:
    """Enter every raw row of a run into its books.

    Args:
        loaded: The rows read, and those that could not be used.
        left: Row id -> why it left before clustering: contaminated, without a score, a duplicate.
        clustered: The low-scored rows, and those dropped for want of relatives.
        distilled: The distilled rows, and the source rows of clusters without one.
        unfaithful: Distilled row id -> why it was dropped before it was rated.
        chosen: The final choice.

    Returns:
        The books; `summary()` checks that they balance.
    """
    ledger = Ledger(len(loaded.columns("id")) + len(loaded.dropped), notes=list(chosen.notes))
    final, lost = set(chosen.merged.dataset["id"][:]), unfaithful | chosen.merged.dropped
    originals = set(chosen.originals)
    ledger.drop(loaded.dropped)
    ledger.drop(left)
    ledger.drop(clustered.dropped)
    ledger.keep(row for row in chosen.originals if row in final)
    ledger.drop({row: lost[row] for row in chosen.originals if row not in final})
    ledger.drop({row: reason for row, reason in distilled.dropped.items() if row not in originals})
    written = table_of(distilled.columns("id", "sources")).combine_chunks()
    ids, sources = written["id"].to_pylist(), written["sources"]
    taken = final - originals  # a row with the text of an original has its id, and is out though that one is in
    states = pa.array([MERGED if row in taken else DROPPED for row in ids], pa.string())
    details = pa.array([row if row in taken else LOST + lost[row] for row in ids], pa.string())
    behind = pc.list_parent_indices(sources)
    ledger.enter(pc.list_flatten(sources), states.take(behind), details.take(behind))
    return ledger


def write_results(directory: RunDirectory, recipe: Recipe, results: Results) -> dict[str, Any]:
    """Write dataset, card, rows, recipe and facts of a finished run.

    Args:
        directory: The run directory.
        recipe: What was done.
        results: What came out.

    Returns:
        The facts, the summary of the ledger among them.

    Raises:
        UnbalancedLedger: If a row is in no state, or in two.
    """
    summary = results.ledger.summary()
    costs = list(costs_of(directory.path).values())
    facts = collect_facts(recipe, results, summary) | {"costs": costs, "plan": read_plan(directory.path)}
    pq.write_table(results.ledger.table(), directory.path / LEDGER_ROWS)
    write_json(directory.path / FACTS, facts)
    recipe_text = yaml.safe_dump(recipe.settings(), sort_keys=False, allow_unicode=True)
    (directory.path / "recipe.yaml").write_text(recipe_text, encoding="utf-8")
    with directory.writing("dataset") as folder:
        _write_shards(folder / "data", results)
        (folder / "README.md").write_text(render_dataset_card(facts), encoding="utf-8")
    return facts


def write_report(directory: RunDirectory, facts: dict[str, Any]) -> None:
    """Write the page of a finished run, if it can be drawn here; the same run, asked for again, writes it later."""
    try:
        report = render_report(facts)
    except ImportError as error:
        logger.warning("No %s: %s. The same command then writes it.", REPORT, error)
    else:
        save_report(report, directory.path / REPORT)


def collect_facts(recipe: Recipe, results: Results, summary: dict[str, Any]) -> dict[str, Any]:
    """What card and report are rendered from, as plain data."""
    numbers = table_of(results.clustered.columns("cluster_id"))["cluster_id"].drop_null()
    sizes = pc.value_counts(numbers).field("counts")
    return {
        "name": recipe.name,
        "recipe": with_local_paths(recipe.settings()),
        "versions": results.versions,
        **dataset_facts(
            table_of(results.merged),
            summary,
            {
                "before": _counts(table_of(results.rated)["score"]),
                "distilled": _counts(table_of(results.rescored)["score"]),
            },
        ),
        "cluster_sizes": _counts(sizes),
        "held_out": results.held_out,
        "histories": results.histories,
        "models": [name for name, _ in results.models],
        "examples": _examples(results),
        "map": results.points,
        "transitions": results.transitions,
    }


def dataset_facts(merged: pa.Table, summary: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    """The facts that depend on which rows are in the dataset.

    Args:
        merged: Its rows, with `origin` and `score`.
        summary: The books' counts.
        scores: How often each score occurs before the choice.
    """
    origins = _counts(merged["origin"])
    return {
        "ledger": summary,
        "rows": {
            "in": summary["rows_in"],
            "out": len(merged),
            "original": origins.get("original", 0),
            "distilled": origins.get("distilled", 0),
        },
        "scores": scores | {"after": _counts(merged["score"])},
    }


def _examples(results: Results) -> list[dict[str, Any]]:
    """The first clusters beside their distillation, those that reached the dataset first."""
    done = table_of(results.rescored)
    taken = table_of(results.merged).filter(pc.field("origin") == "distilled")["id"]
    done = done.append_column("in_dataset", pc.is_in(done["id"], taken))
    keys = [("in_dataset", "descending"), ("cluster_id", "ascending"), ("id", "ascending")]
    rows = done.take(pc.sort_indices(done, keys)[:EXAMPLES]).to_pylist()
    behind = pa.array([source for row in rows for source in row["sources"]], pa.string())
    loaded = table_of(results.loaded.columns("id", "prompt", "completion"))
    texts = {row["id"]: row for row in loaded.filter(pc.is_in(loaded["id"], behind)).to_pylist()}
    return [
        {
            "cluster_id": row["cluster_id"],
            "sources": [
                texts[source] | {"score": score}
                for source, score in zip(row["sources"], row["source_scores"], strict=True)
            ],
            "prompt": row["prompt"],
            "completion": row["completion"],
            "reasoning": row["reasoning"],
            "score": row["score"],
            "in_dataset": row["in_dataset"],
        }
        for row in rows
    ]


def _counts(values: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, by value; null is counted as `none`."""
    found = {pair["values"]: pair["counts"] for pair in pc.value_counts(values).to_pylist()}
    missing = found.pop(None, 0)
    return {str(value): found[value] for value in sorted(found)} | ({"none": missing} if missing else {})


def _write_shards(folder: Path, results: Results) -> None:
    """Parquet shards under the names that the Hub and `load_dataset` know."""
    folder.mkdir()
    merged, written = table_of(results.merged), table_of(results.rescored)
    loaded = table_of(results.loaded.columns("id", "prompt", "completion", "source"))
    is_original = pc.equal(merged["origin"], "original").to_numpy()
    places = np.where(
        is_original, places_of(merged["id"], loaded["id"]), len(loaded) + places_of(merged["id"], written["id"])
    )
    known = [rows.select([name for name in WRITTEN if name in rows.column_names]) for rows in (loaded, written)]
    texts = pa.concat_tables(known, promote_options="default")
    shards = max(1, -(-len(merged) // ROWS_PER_SHARD))
    for number, behind in enumerate(np.array_split(places, shards)):
        rows = table_of(results.merged.shard(shards, number, contiguous=True))
        found = pa.concat_tables([texts.slice(0, 0), *gathered(texts, behind, GATHERED)])
        columns = {name: (found if name in WRITTEN else rows)[name] for name in rows.column_names}
        dataset_of(pa.table(columns)).to_parquet(folder / f"train-{number:05d}-of-{shards:05d}.parquet")
