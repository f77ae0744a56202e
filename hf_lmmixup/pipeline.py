"""The main job: raw instruction pairs in, a distilled dataset out.

    load -> embed -> decontaminate -> rate -> deduplicate -> split by score -> cluster the low half
    -> cold start (SFT) -> GRPO -> distil -> decontaminate, check the facts -> rate again
    -> select -> merge with the high half -> dataset, ledger, report

Who distils is up to the recipe: a model that the run trains itself, an instruct model as it is, or no model at all.
Each step is a stage of a run directory: finished stages are kept, so a run that was stopped goes on where it was, and
within the distillation behind the last completion that came back. The result depends on the input and the recipe
alone::

    run(load_recipe("recipes/quickstart.yaml"))

Source of the order and its thresholds: arXiv 2510.20449.
"""

import logging
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_lmmixup.datastore import ScoredDatastore
from hf_lmmixup.distiller import check_trainings
from hf_lmmixup.distilling import JOURNAL, Distilling
from hf_lmmixup.earlier_run import EarlierRun
from hf_lmmixup.evaluation_sets import local_evaluations
from hf_lmmixup.fingerprint import input_fingerprint
from hf_lmmixup.half_precision import widened
from hf_lmmixup.inputs import check_place, check_source
from hf_lmmixup.preparation import Preparation, Tools
from hf_lmmixup.projection import map_points
from hf_lmmixup.recipe import Recipe
from hf_lmmixup.records import Progress
from hf_lmmixup.results import Chosen, Results, account, choose, write_report, write_results
from hf_lmmixup.run_directory import LEDGER, REPORT, RunDirectory, read_json, write_json
from hf_lmmixup.run_facts import read_facts
from hf_lmmixup.selection import long_tail_scores
from hf_lmmixup.stages import Stages, free_memory, plain_memory
from hf_lmmixup.tables import rows_at, table_of, with_columns
from hf_lmmixup.vectors import encoded
from hf_lmmixup.writers import check_server


logger = logging.getLogger(__name__)

PACKAGES = ("hf-lmmixup", "datasets", "faiss-cpu", "numpy", "sentence-transformers", "torch", "transformers", "trl")

MAPPED_CLUSTERS = 1000
"""Clusters among which the report's map chooses."""

UNRATED = "rate: the judge abstains"


@dataclass(frozen=True)
class Finished:
    """What a run left.

    Attributes:
        directory: The run directory.
        ledger: The counts of `ledger.json`.
        worked: False if the run had been finished before and nothing was done.
    """

    directory: Path
    ledger: dict[str, Any]
    worked: bool


def run(
    recipe: Recipe,
    *,
    progress: Progress | None = None,
    tools: Tools | None = None,
    update: str | Path | None = None,
) -> Finished:
    """Do the whole job, or the part of it that is missing.

    Args:
        recipe: What to do.
        progress: Told what is going on.
        tools: Encoder, judge and writer to use instead of those that the recipe names.
        update: Directory of a finished run of the same recipe on some of the rows: what it knows is taken over, and
            only clusters that changed are distilled.

    Returns:
        The run directory and its books.

    Raises:
        FileNotFoundError: If the input, an evaluation set or a file named by the recipe does not exist.
        ImportError: If an extra is missing.
        ValueError: If the input holds no usable row, the output lies in it, the endpoint has no address that data may
            go to or no key, GRPO would start from an adapter, or the directory belongs to another run.
        RuntimeError: If another process works in the directory, or a training fails.
    """
    check_server(recipe.distiller)
    check_trainings(recipe)
    check_place(recipe.output, recipe.input, *recipe.decontaminate.evaluations)
    directory = RunDirectory(recipe.output)
    earlier = None if update is None else EarlierRun(Path(update), recipe.settings())
    with directory.locked(), plain_memory():
        directory.claim(_made_from(recipe, update))
        ledger = directory.path / LEDGER
        if ledger.is_file():
            if not (directory.path / REPORT).is_file():
                write_report(directory, read_facts(directory.path))
            return Finished(directory.path, read_json(ledger), worked=False)
        job = _Run(recipe, Stages(directory, progress or _silent), tools or Tools(), earlier)
        return Finished(directory.path, job.finish(), worked=True)


def _made_from(recipe: Recipe, update: str | Path | None) -> dict[str, Any]:
    """What the result depends on, as plain data: the recipe and the contents of what it names."""
    check_source(recipe.input)
    known: dict[str, Any] = {
        "input": input_fingerprint(recipe.input),
        "recipe": recipe.settings(),
    }
    if local := local_evaluations(recipe.decontaminate.evaluations):
        known["evaluations"] = {name: input_fingerprint(name) for name in local}
    return known | ({"update": input_fingerprint(str(Path(update) / JOURNAL))} if update else {})


class _Run:
    """One run in progress; each stage is computed when it is first asked for."""

    def __init__(self, recipe: Recipe, stages: Stages, tools: Tools, earlier: EarlierRun | None) -> None:
        self.recipe, self.directory, self.progress = recipe, stages.directory, stages.progress
        self.tools = tools
        self.rows = Preparation(recipe, stages, tools, earlier)
        self.distilling = Distilling(recipe, stages, self.rows, tools, earlier)

    def finish(self) -> dict[str, Any]:
        results = self._results()
        free_memory()
        self.progress("writing the dataset and the report", 0, 0)
        facts = write_results(self.directory, self.recipe, results)
        del results  # the page needs the facts alone
        free_memory()
        write_report(self.directory, facts)
        ledger: dict[str, Any] = facts["ledger"]
        write_json(self.directory.path / LEDGER, ledger)
        return ledger

    def _results(self) -> Results:
        rows, distilling, rescored = self.rows, self.distilling, self.distilling.rescored.dataset
        chosen = self._chosen(rescored)
        free_memory()
        dropped = dict.fromkeys(rows.unrated, UNRATED) | rows.decontaminated_away | rows.unique.dropped
        return Results(
            merged=chosen.merged.dataset,
            ledger=account(
                rows.loaded, dropped, rows.clustered, distilling.distilled, distilling.checked.dropped, chosen
            ),
            rated=rows.rated.columns("score"),
            loaded=rows.loaded,
            clustered=rows.clustered,
            rescored=rescored,
            held_out=distilling.held_out(),
            histories=distilling.histories(),
            models=distilling.models,
            versions=versions(),
            points=self._points(rows.clustered.columns("id", "score", "cluster_id"), rescored),
            transitions={} if self.tools.judge else _transitions(rows.datastore),
        )

    def _chosen(self, rescored: Dataset) -> Chosen:
        """The rows of the dataset: originals by their rarity among all rows, distilled ones among themselves."""
        originals, vectors = self.rows.originals, self.rows.vectors
        rarity = long_tail_scores(vectors.matrix, graph=vectors.graph)[vectors.places(originals["id"][:])]
        free_memory()
        distilled_rarity = long_tail_scores(encoded(rescored, self.rows.encoder, vectors))
        free_memory()
        return choose(originals, rarity, rescored, distilled_rarity, self.recipe.select)

    def _points(self, clusters: Dataset, distilled: Dataset) -> dict[str, list[Any]]:
        """The map of the clusters: evenly chosen clusters where there are many."""
        numbers = [table_of(rows)["cluster_id"].fill_null(-1).to_numpy() for rows in (clusters, distilled)]
        known = np.unique(numbers[0][numbers[0] >= 0])
        shown = known[:: max(1, -(-len(known) // MAPPED_CLUSTERS))]
        some = [
            rows_at(rows, np.flatnonzero(np.isin(number, shown)))
            for rows, number in zip((clusters, distilled), numbers, strict=True)
        ]
        places = self.rows.vectors.places(some[0]["id"][:])
        vectors = widened(self.rows.vectors.matrix[places])
        written = encoded(some[1], self.rows.encoder, self.rows.vectors)
        prompts = table_of(rows_at(self.rows.loaded.columns("prompt"), places))["prompt"]
        some[0] = with_columns(some[0], {"prompt": prompts})
        return map_points(some[0].to_list(), vectors, some[1].to_list(), written)


def _transitions(datastore: ScoredDatastore) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "classes": transition.classes.tolist(),
            "matrix": transition.matrix.round(4).tolist(),
            "prior": transition.prior.round(4).tolist(),
        }
        for name, transition in datastore.transitions.items()
    }


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    return {"python": platform.python_version()} | dict(_installed())


def _installed() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue


def _silent(title: str, done: int, total: int) -> None:
    logger.debug("%s %d/%d", title, done, total)
