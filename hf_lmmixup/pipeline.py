"""The main job: raw instruction pairs in, a distilled dataset out, by a distiller that the run itself trains.

    load -> rate -> split by score -> cluster the low half -> cold start (SFT) -> GRPO -> distil -> rate again
    -> select -> merge with the high half -> dataset, ledger, report

Each step is a stage of a run directory: finished stages are kept, so a run that was stopped goes on where it was. The
result depends on the input and the recipe alone::

    run(load_recipe("recipes/quickstart.yaml"))

Source of the order and its thresholds: arXiv 2510.20449.
"""

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, concatenate_datasets

from hf_lmmixup import bundled, clustering, rating
from hf_lmmixup.datastore import ScoredDatastore, build
from hf_lmmixup.distillation import DistilledOutcome, distill
from hf_lmmixup.distiller import Distiller, Progress, mixture
from hf_lmmixup.encoder import CachedEncoder, load_encoder
from hf_lmmixup.generation import LocalGenerator
from hf_lmmixup.held_out import judge
from hf_lmmixup.loading import load_rows
from hf_lmmixup.recipe import Recipe
from hf_lmmixup.records import CLUSTERED, DISTILLED, LOADED, RATED, Outcome, pair_text
from hf_lmmixup.results import Results, account, choose, write_results
from hf_lmmixup.run_directory import STAGES, RunDirectory, input_fingerprint, write_json
from hf_lmmixup.training import copy_model, read_history


logger = logging.getLogger(__name__)

PACKAGES = ("hf-lmmixup", "datasets", "faiss-cpu", "numpy", "sentence-transformers", "torch", "transformers", "trl")

DATASTORE, DISTILLER = "datastore", "distiller"
LOAD, RATE, CLUSTER, DISTIL, RERATE = "1_load", "3_rate", "4_cluster", "7_distil", "8_rate_again"
RESCORED = Features({**DISTILLED, **{name: RATED[name] for name in ("rating", "score", "rating_error")}})

CACHED_TEXTS = 100_000
"""Texts whose embeddings stay in memory; at 384 dimensions they take 150 MB."""

UNRATED = "rate: the datastore abstains"


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


def run(recipe: Recipe, *, progress: Progress | None = None) -> Finished:
    """Do the whole job, or the part of it that is missing.

    Args:
        recipe: What to do.
        progress: Told what is going on.

    Returns:
        The run directory and its books.

    Raises:
        FileNotFoundError: If the input or a file named by the recipe does not exist.
        ValueError: If the input holds no usable row, or the directory belongs to another run.
        RuntimeError: If another process works in the directory, or a training fails.
    """
    directory = RunDirectory(recipe.output)
    with directory.locked():
        directory.claim({"input": input_fingerprint(recipe.input), "recipe": recipe.settings()})
        ledger = directory.path / "ledger.json"
        if ledger.is_file():
            return Finished(directory.path, json.loads(ledger.read_text(encoding="utf-8")), worked=False)
        return Finished(directory.path, _Run(recipe, directory, progress or _silent).finish(), worked=True)


class _Run:
    """One run in progress; each stage is computed when it is first asked for."""

    def __init__(self, recipe: Recipe, directory: RunDirectory, progress: Progress) -> None:
        self.recipe, self.directory, self.progress = recipe, directory, progress

    def finish(self) -> dict[str, Any]:
        results = self._results()
        self.progress("writing the dataset and the report", 0, 0)
        summary = write_results(self.directory, self.recipe, results)
        write_json(self.directory.path / "ledger.json", summary)
        return summary

    @cached_property
    def encoder(self) -> CachedEncoder:
        return CachedEncoder(load_encoder(self.recipe.encoder), capacity=CACHED_TEXTS)

    @cached_property
    def datastore(self) -> ScoredDatastore:
        folder = self.directory.path / DATASTORE
        if not folder.is_dir():
            self.progress("building the datastore", 0, 0)
            if self.recipe.datastore == "bundled":
                rows = bundled.rated_texts("train")
                texts, scores, kinds, *_ = zip(*rows, strict=True)
                store = build(texts, scores, kinds, self.encoder)
            else:
                store = ScoredDatastore.from_pretrained(self.recipe.datastore)
            with self.directory.writing(DATASTORE) as partial:
                store.save(partial)
        return ScoredDatastore.load(folder)

    @property
    def environment(self) -> dict[str, str]:
        """What the rewards must know."""
        known = {"HF_LMMIXUP_DATASTORE": str((self.directory.path / DATASTORE).resolve())}
        return known | ({"HF_LMMIXUP_ENCODER": self.recipe.encoder} if self.recipe.encoder else {})

    @cached_property
    def loaded(self) -> Outcome:
        source = self.recipe.input
        if source == "bundled":
            source = str(resources.files("hf_lmmixup").joinpath("data/pool.jsonl"))
        return self._stage(LOAD, "loading", LOADED, lambda: load_rows(source, limit=self.recipe.limit))

    @cached_property
    def rated(self) -> Outcome:
        rows = self.loaded.dataset
        return self._stage(
            RATE,
            f"rating {len(rows)} rows",
            RATED,
            lambda: rating.rate_with_datastore(rows, self.datastore, self.encoder),
        )

    @cached_property
    def halves(self) -> tuple[Dataset, Dataset, Dataset]:
        return rating.split_by_score(self.rated.dataset, self.recipe.rate.threshold)

    @cached_property
    def clustered(self) -> Outcome:
        low, options = self.halves[1], self.recipe.cluster
        return self._stage(
            CLUSTER,
            f"clustering {len(low)} low-scored rows",
            CLUSTERED,
            lambda: clustering.cluster(low, self._embed(low), seed=self.recipe.seed, **vars(options)),
        )

    @cached_property
    def distiller(self) -> Distiller:
        assert self.datastore is not None  # the rewards read it from the run directory
        return Distiller(self.recipe, self.directory, self.environment, self.progress)

    @cached_property
    def distilled(self) -> DistilledOutcome:
        model, clusters = self.distiller.models[-1][1], self.clustered.dataset
        outcome = self._stage(
            DISTIL,
            f"distilling {len(set(clusters['cluster_id']) - {None})} clusters",
            DISTILLED,
            lambda: self._distil(clusters, model),
        )
        return DistilledOutcome(outcome.dataset, outcome.dropped)

    @cached_property
    def rescored(self) -> Outcome:
        rows = self.distilled.dataset
        return self._stage(
            RERATE,
            f"rating {len(rows)} distilled rows",
            RESCORED,
            lambda: rating.rate_with_datastore(rows, self.datastore, self.encoder),
        )

    def _results(self) -> Results:
        high, _, unrated = self.halves
        clusters, rescored = self.clustered.dataset, self.rescored.dataset
        lone = clusters.filter(lambda row: row["cluster_id"] is None, keep_in_memory=True)
        originals = concatenate_datasets([high, lone.remove_columns("cluster_id")]) if len(lone) else high
        held_out = self._held_out()
        chosen = choose(originals, self._embed(originals), rescored, self._embed(rescored), self.recipe.select)
        return Results(
            merged=chosen.merged.dataset,
            ledger=account(self.loaded, dict.fromkeys(unrated["id"], UNRATED), self.clustered, self.distilled, chosen),
            rated=self.rated.dataset,
            clustered=clusters,
            rescored=rescored,
            held_out=held_out,
            histories={title: read_history(Path(path)) for title, path in self.distiller.models[1:]},
            models=self.distiller.models,
            versions=versions(),
        )

    def _held_out(self) -> dict[str, dict[str, Any]]:
        """Rewards on held-out prompts, for the untrained distiller and after each training."""
        rows = mixture("grpo", "test").to_list()[: self.recipe.distiller.held_out]
        judged: dict[str, dict[str, Any]] = {}
        for title, model in self.distiller.models if rows else []:
            stage = f"held_out_{title.replace(' ', '_').lower()}"
            if not self.directory.has(stage):
                self.progress(f"held-out prompts: {title}", 0, len(rows))
                assert self.datastore is not None
                result = judge(self._generator(model).generate, rows, self.environment)
                with self.directory.writing(f"{STAGES}/{stage}") as partial:
                    write_json(partial / "rewards.json", result)
            file = self.directory.stage(stage) / "rewards.json"
            judged[title] = json.loads(file.read_text(encoding="utf-8"))
        return judged

    def _distil(self, clusters: Dataset, model: str) -> Outcome:
        generator = self._generator(model)
        if not (self.directory.path / DISTILLER).is_dir() and self.distiller.is_trained:
            with self.directory.writing(DISTILLER) as partial:
                copy_model(Path(model), partial)
        total = len(set(clusters["cluster_id"]) - {None})
        done = iter(range(1, total * self.recipe.distiller.attempts + 1))

        def generate(conversations: Any, *, seeds: Any = None, on_reply: Any = None) -> list[str | None]:
            def told(place: int, text: str | None) -> None:
                self.progress("distilling", min(next(done, total), total), total)
                if on_reply is not None:
                    on_reply(place, text)

            return generator.generate(conversations, seeds=seeds, on_reply=told)

        return distill(
            clusters,
            generate,
            distiller_name=f"{self.recipe.name}/{DISTILLER}" if self.distiller.is_trained else model,
            max_prompt_tokens=generator.max_prompt_tokens,
            count_tokens=generator.count_tokens,
            attempts=self.recipe.distiller.attempts,
            seed=self.recipe.seed,
        )

    def _generator(self, model: str) -> LocalGenerator:
        options = self.recipe.distiller
        return LocalGenerator(model, batch_size=options.batch_size, max_new_tokens=options.max_new_tokens)

    def _embed(self, rows: Dataset) -> Any:
        return self.encoder.encode([pair_text(row["prompt"], row["completion"]) for row in rows])

    def _stage(self, name: str, title: str, features: Features, work: Callable[[], Outcome]) -> Outcome:
        if not self.directory.has(name):
            self.progress(title, 0, 0)
            started = time.perf_counter()
            self.directory.save_outcome(name, work())
            logger.info("%s took %.1f s.", title, time.perf_counter() - started)
        return self.directory.load_outcome(name, features)


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
