"""The second half of a run: clusters to distilled rows that are true to their sources and have a score.

    cold start (SFT) -> GRPO -> distil -> decontaminate, check the facts -> rate again

A recipe's `mode` says who distils: a model that the run trains (or finds trained), an instruct model as it is, or no
model at all. Every completion is in a journal as soon as it comes, so a crash costs no more than those on their way.
"""

import logging
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, Features

from hf_lmmixup.distillation import distill
from hf_lmmixup.distilled_rows import DistilledOutcome
from hf_lmmixup.earlier_run import EarlierRun
from hf_lmmixup.extractive import NAME, distill_extractively
from hf_lmmixup.faithfulness import COLUMNS, check_faithfulness
from hf_lmmixup.journal import Journal
from hf_lmmixup.preparation import DATASTORE, Preparation, Tools
from hf_lmmixup.recipe import EXTRACTIVE, TRAINED, TRAINED_BEFORE, Recipe
from hf_lmmixup.records import CHARACTERS_PER_TOKEN, DISTILLED, RATED, Outcome
from hf_lmmixup.run_directory import CHECK, DISTIL, RERATE, STAGES, TRAIN, read_json, write_json
from hf_lmmixup.stages import Stages
from hf_lmmixup.tables import table_of
from hf_lmmixup.vectors import encoded
from hf_lmmixup.writers import Writer, open_writer


logger = logging.getLogger(__name__)

DISTILLER, JOURNAL = "distiller", "distil.journal"
READ, TEXTS_READ = ("id", "cluster_id", "score"), ("id", "prompt", "completion")
"""What the distillation reads of a clustered row, and of a loaded one."""
CHECKED = Features({**DISTILLED, **COLUMNS})
RESCORED = Features({**CHECKED, **{name: RATED[name] for name in ("rating", "score", "rating_error")}})


class Distilling:
    """Clusters on their way to distilled rows; each step is done when it is first asked for.

    Args:
        recipe: What to do.
        stages: The run directory's stages.
        rows: Where the clusters come from.
        tools: What the run borrows.
        earlier: The run that this one goes on from.
    """

    def __init__(
        self, recipe: Recipe, stages: Stages, rows: Preparation, tools: Tools, earlier: EarlierRun | None
    ) -> None:
        self.recipe, self.stages, self.rows, self.tools, self.earlier = recipe, stages, rows, tools, earlier
        self.directory, self.progress = stages.directory, stages.progress

    @property
    def environment(self) -> dict[str, str]:
        """What the rewards must know."""
        _ = self.rows.datastore  # the rewards read it from the run directory
        known = {"HF_LMMIXUP_DATASTORE": str((self.directory.path / DATASTORE).resolve())}
        return known | ({"HF_LMMIXUP_ENCODER": self.recipe.encoder} if self.recipe.encoder else {})

    @cached_property
    def models(self) -> list[tuple[str, str]]:
        """Name and place of the distiller before training and after each one; the last writes the dataset."""
        options = self.recipe.distiller
        if options.mode == EXTRACTIVE:
            return [(NAME, NAME)]
        if self.earlier is not None and (self.earlier.path / DISTILLER).is_dir():
            return [(TRAINED_BEFORE, str(self.earlier.path / DISTILLER))]
        if options.mode != TRAINED or self.tools.writer is not None:
            return [(options.model, options.model)]
        from hf_lmmixup.distiller import Distiller

        distiller = Distiller(self.recipe, self.directory, self.environment, self.progress)
        if not self.is_trained or self.directory.has(DISTIL):
            return distiller.models
        with self.stages.timed(TRAIN):
            return distiller.models

    @property
    def is_trained(self) -> bool:
        """Whether this run trains its distiller."""
        return self.recipe.distiller.cold_start is not None or self.recipe.distiller.grpo is not None

    @cached_property
    def distilled(self) -> Outcome:
        """One row for each cluster that could be distilled."""
        clusters = self.rows.clustered
        if not self.directory.has(DISTIL):
            # Trained here, so that its time is not this stage's.
            logger.info("The distiller is %s.", self.models[-1][0])
        title = f"distilling {count_clusters(clusters.columns('cluster_id'))} clusters"
        return self.stages.outcome(DISTIL, title, DISTILLED, lambda: self._distil(clusters.columns(*READ)))

    def _distil(self, clusters: Dataset) -> DistilledOutcome:
        options = self.recipe.distiller
        if options.mode == EXTRACTIVE:
            with self._journal(NAME, {}) as journal:
                told = self._counter(count_clusters(clusters))
                encoder, texts = self.rows.known_texts, self.rows.loaded.columns(*TEXTS_READ)
                return distill_extractively(clusters, encoder, journal=journal, progress=told, texts=texts)
        writer = self.tools.writer or self._writer()
        told = self._counter(count_clusters(clusters) * options.attempts)

        def generate(conversations: Any, *, seeds: Any = None, on_reply: Any = None) -> Any:
            def taken(place: int, text: str | None) -> None:
                told(1)
                if on_reply is not None:
                    on_reply(place, text)

            return writer.generate(conversations, seeds=seeds, on_reply=taken)

        with self._journal(writer.name, writer.settings) as journal:
            outcome = distill(
                clusters,
                generate,
                distiller_name=writer.name,
                max_prompt_tokens=writer.max_prompt_tokens,
                count_tokens=writer.count_tokens,
                attempts=options.attempts,
                seed=self.recipe.seed,
                journal=journal,
                at_a_time=writer.at_a_time,
                texts=self.rows.loaded.columns(*TEXTS_READ),
            )
        self._spent(outcome)
        return outcome

    def _writer(self) -> Writer:
        """The distiller, kept in the run directory if it was trained."""
        options, model = self.recipe.distiller, self.models[-1][1]
        if not self.is_trained:
            return open_writer(options, model)
        if not (self.directory.path / DISTILLER).is_dir():
            from hf_lmmixup.training import copy_model

            with self.directory.writing(DISTILLER) as partial:
                copy_model(Path(model), partial)
        return open_writer(options, model, f"{self.recipe.name}/{DISTILLER}")

    def _journal(self, name: str, settings: dict[str, Any]) -> Journal:
        """Where completions are kept as they come; a run that goes on from another one has the other's."""
        path = self.directory.path / JOURNAL
        if self.earlier is not None and not path.exists():
            partial = path.with_name(f".{JOURNAL}.partial")
            shutil.copyfile(self.earlier.path / JOURNAL, partial)
            partial.rename(path)
        return Journal(path, {"distiller": name, "seed": self.recipe.seed, **settings})

    def _spent(self, outcome: DistilledOutcome) -> None:
        """Write down what was read and written, whether in this process or before a crash, but not by another run."""
        options, tries = self.recipe.distiller, table_of(outcome.completions)
        if self.earlier is not None:
            tries = tries.filter(pc.invert(pc.is_in(tries["prompt_hash"], self.earlier.asked())))
        lengths = tries["prompt_bytes"], pc.binary_length(tries["completion"])
        read, written = ((pc.sum(length).as_py() or 0) / CHARACTERS_PER_TOKEN for length in lengths)
        money = None
        if options.prompt_price is not None and options.completion_price is not None:
            money = (read * options.prompt_price + written * options.completion_price) / 1e6
        self.stages.spent(DISTIL, tokens=round(read + written), money=money)

    def _counter(self, total: int) -> Callable[[int], None]:
        done = [0]

        def told(more: int) -> None:
            done[0] += more
            self.progress("distilling", min(done[0], total), total)

        return told

    @cached_property
    def checked(self) -> Outcome:
        """The distilled rows that hold no evaluation text and are faithful to their sources."""
        distilled = self.distilled
        title = f"checking the facts of {len(distilled.columns('id'))} distilled rows"
        return self.stages.outcome(CHECK, title, CHECKED, lambda: self._check(distilled.dataset))

    def _check(self, rows: Dataset) -> Outcome:
        dropped: dict[str, str] = {}
        if self.recipe.decontaminate.evaluations:
            clean = self.rows.decontaminated(rows, lambda: encoded(rows, self.rows.encoder, self.rows.vectors))
            rows, dropped = clean.dataset, clean.dropped
        sources = self.rows.loaded.columns(*TEXTS_READ)
        outcome = check_faithfulness(rows, sources, **vars(self.recipe.faithfulness))
        return Outcome(outcome.dataset, dropped | outcome.dropped)

    @cached_property
    def rescored(self) -> Outcome:
        """The checked rows with scores."""
        rows = self.checked.dataset
        title = f"rating {len(rows)} distilled rows"
        return self.stages.outcome(RERATE, title, RESCORED, lambda: self.rows.judge(rows))

    def held_out(self) -> dict[str, dict[str, Any]]:
        """Rewards on held-out prompts, for the untrained distiller and after each training."""
        if self.recipe.distiller.mode != TRAINED or self.tools.writer or self.earlier:
            return {}
        from hf_lmmixup.distiller import mixture
        from hf_lmmixup.held_out import judge

        rows = mixture("grpo", "test").to_list()[: self.recipe.distiller.held_out]
        judged: dict[str, dict[str, Any]] = {}
        for title, model in self.models if rows else []:
            stage = f"held_out_{title.replace(' ', '_').lower()}"
            if not self.directory.has(stage):
                self.progress(f"held-out prompts: {title}", 0, len(rows))
                writer = open_writer(self.recipe.distiller, model)
                result = judge(writer.generate, rows, self.environment)
                with self.directory.writing(f"{STAGES}/{stage}") as partial:
                    write_json(partial / "rewards.json", result)
            file = self.directory.stage(stage) / "rewards.json"
            judged[title] = read_json(file)
        return judged

    def histories(self) -> dict[str, list[dict[str, Any]]]:
        """What was logged in each training, by model."""
        if not self.is_trained or self.earlier is not None or self.tools.writer is not None:
            return {}
        from hf_lmmixup.training import read_history

        return {title: read_history(Path(path)) for title, path in self.models[1:]}


def count_clusters(clustered: Dataset) -> int:
    """How many clusters the rows are in."""
    return len(set(clustered["cluster_id"][:]) - {None})
