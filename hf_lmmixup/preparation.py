"""The first half of a run: raw rows to clusters of weak ones.

    load -> embed -> decontaminate -> rate -> deduplicate -> split by score -> cluster the low half

Rows are put in order of their id, so nothing after loading depends on the order of the input. They are embedded once;
rating, duplicates, clusters and rarity read the same vectors, and the last three the same neighbor graph.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from hf_lmmixup import bundled, clustering, rating
from hf_lmmixup.attachment import attach
from hf_lmmixup.datastore import ScoredDatastore
from hf_lmmixup.decontamination import decontaminate
from hf_lmmixup.deduplication import find_duplicates
from hf_lmmixup.earlier_run import EarlierRun
from hf_lmmixup.encoder import CachedEncoder, Encoder, load_encoder
from hf_lmmixup.evaluation_sets import read_evaluations
from hf_lmmixup.half_precision import widened
from hf_lmmixup.loading import load_rows
from hf_lmmixup.raters import BUNDLED, named_datastore
from hf_lmmixup.recipe import Recipe
from hf_lmmixup.records import CLUSTERED, LOADED, RATED, Outcome
from hf_lmmixup.run_directory import CLEAN, CLUSTER, EMBED, LOAD, RATE, TEXTS, UNIQUE
from hf_lmmixup.stages import Stages
from hf_lmmixup.tables import rows_at, table_of, without
from hf_lmmixup.vectors import BLOCK, KnownTexts, Vectors, embed
from hf_lmmixup.writers import Writer


DATASTORE = "datastore"

JUDGED = tuple(name for name in RATED if name not in TEXTS)
"""What is known of a rated row besides its texts."""

CACHED_TEXTS = 20_000
"""Texts of distilled rows and the datastore whose vectors stay in memory; at 384 dimensions they take 30 MB."""


@dataclass(frozen=True)
class Tools:
    """What a run borrows; what is `None` is opened as the recipe says.

    Attributes:
        encoder: Embeds texts.
        embedded_at_a_time: Rows that the encoder should get at a time.
        judge: Adds `rating`, `score` and `rating_error` to rows, without a datastore.
        rater: The same with a datastore; `rating.rate_with_datastore` or what does its work elsewhere.
        writer: Writes the distillations.
    """

    encoder: Encoder | None = None
    embedded_at_a_time: int = BLOCK
    judge: Callable[[Dataset], Outcome] | None = None
    rater: Callable[[Dataset, ScoredDatastore, Encoder], Outcome] = rating.rate_with_datastore
    writer: Writer | None = None


class Preparation:
    """Raw rows on their way to clusters; each step is done when it is first asked for.

    Args:
        recipe: What to do.
        stages: The run directory's stages.
        tools: What the run borrows.
        earlier: The run that this one goes on from.
    """

    def __init__(self, recipe: Recipe, stages: Stages, tools: Tools, earlier: EarlierRun | None = None) -> None:
        self.recipe, self.stages, self.tools, self.earlier = recipe, stages, tools, earlier

    @cached_property
    def encoder(self) -> CachedEncoder:
        """The recipe's encoder; it remembers its latest texts."""
        return CachedEncoder(self.tools.encoder or load_encoder(self.recipe.encoder), capacity=CACHED_TEXTS)

    @cached_property
    def datastore(self) -> ScoredDatastore:
        """The rated texts that judge all others, kept in the run directory."""
        directory = self.stages.directory
        folder = directory.path / DATASTORE
        if not folder.is_dir():
            self.stages.progress("building the datastore", 0, 0)
            with directory.writing(DATASTORE) as partial:
                self._datastore().save(partial)
        return ScoredDatastore.load(folder)

    def _datastore(self) -> ScoredDatastore:
        if self.earlier is not None and (self.earlier.path / DATASTORE).is_dir():
            return ScoredDatastore.load(self.earlier.path / DATASTORE)
        return named_datastore(self.recipe.datastore, self.encoder)[0]

    @property
    def source(self) -> str:
        """Where the raw rows are."""
        if self.recipe.input == BUNDLED:
            return str(bundled.pool_file())
        return self.recipe.input

    @cached_property
    def loaded(self) -> Outcome:
        """The usable raw rows, by id."""

        def load() -> Outcome:
            return load_rows(self.source, limit=self.recipe.limit)

        return self.stages.outcome(LOAD, "loading", LOADED, load, by_id=True)

    @cached_property
    def vectors(self) -> Vectors:
        """The embeddings of the loaded rows, and their neighbor graph."""
        directory, ids = self.stages.directory, self.loaded.columns("id")["id"][:]
        if not directory.has(EMBED):
            title, folder = f"embedding {len(ids)} rows", directory.path / f".{EMBED}"
            earlier = self.earlier.vectors(self.encoder) if self.earlier else None

            def told(done: int) -> None:
                self.stages.progress(title, done, len(ids))

            with self.stages.timed(EMBED) as facts:
                block = self.tools.embedded_at_a_time
                # Not through the cache: these vectors are on the disk as soon as they are there.
                plain = self.encoder.encoder
                embed(self.loaded.dataset, plain, folder, earlier=earlier, block=block, progress=told)
                self.stages.progress("building the neighbor graph", 0, 0)
                graph = Vectors(folder, ids).graph
                if graph.recall < 1:
                    self.stages.progress(graph.trueness, 0, 0)
                directory.adopt(folder, EMBED)
                facts |= {"rows": len(ids), "recall": round(graph.recall, 4)}
        return Vectors(directory.stage(EMBED), ids)

    @cached_property
    def known_texts(self) -> Encoder:
        """The encoder, for stages that embed the loaded rows again."""
        return KnownTexts(self.encoder, self.loaded.dataset, self.vectors)

    @cached_property
    def evaluations(self) -> dict[str, list[str]]:
        """The evaluation texts that no row may hold."""
        return read_evaluations(self.recipe.decontaminate.evaluations)

    def decontaminated(self, rows: Dataset, vectors: Callable[[], np.ndarray]) -> Outcome:
        """The rows that hold no evaluation text; `vectors` is called only if embeddings are compared."""
        options = self.recipe.decontaminate
        if options.min_similarity is None:
            return decontaminate(rows, self.evaluations, min_overlap=options.min_overlap)
        known = {name: self.encoder.encode(texts) for name, texts in self.evaluations.items()}
        return decontaminate(
            rows,
            self.evaluations,
            min_overlap=options.min_overlap,
            embeddings=widened(vectors()),
            evaluation_embeddings=known,
            min_similarity=options.min_similarity,
        )

    @cached_property
    def clean(self) -> Outcome:
        """The loaded rows without those that hold an evaluation text."""
        if not self.recipe.decontaminate.evaluations:
            return self.loaded
        rows = self.loaded.dataset
        title = f"searching {len(rows)} rows for evaluation texts"
        return self.stages.outcome(
            CLEAN,
            title,
            LOADED,
            lambda: self.decontaminated(rows, lambda: self.vectors.of(rows["id"][:])),
            new_texts=False,
        )

    @cached_property
    def rated(self) -> Outcome:
        """The clean rows with scores."""
        rows = self.clean.dataset
        if self.tools.judge is None:
            _ = self.known_texts  # now, so that its time is not counted here
        return self.stages.outcome(RATE, f"rating {len(rows)} rows", RATED, lambda: self._rate(rows), new_texts=False)

    def _rate(self, rows: Dataset) -> Outcome:
        if self.earlier is None:
            return self.judge(rows)
        known, new = self.earlier.rated(rows)
        both = concatenate_datasets([known, self.judge(new).dataset.cast(RATED)]) if len(new) else known
        return Outcome(rows_at(both, np.argsort(np.array(both["id"][:]), kind="stable")))

    def judge(self, rows: Dataset) -> Outcome:
        """Rate rows; texts of the loaded rows are not embedded again."""
        if self.tools.judge is not None:
            return self.tools.judge(rows)
        return self.tools.rater(rows, self.datastore, self.known_texts)

    def judge_alone(self, rows: Dataset) -> Outcome:
        """Rate rows without loading the others, for a plan."""
        if self.tools.judge is not None:
            return self.tools.judge(rows)
        return self.tools.rater(rows, self.datastore, self.encoder)

    @cached_property
    def unique(self) -> Outcome:
        """The rated rows without duplicates; rows without a score are in `unrated`."""
        limit, outcome, vectors = self.recipe.deduplicate.max_similarity, self.rated, self.vectors

        def work() -> Outcome:
            has_score = np.flatnonzero(_has_score(outcome.columns("score")))
            scored = rows_at(outcome.dataset, has_score)
            if limit is None:
                dropped = find_duplicates(scored)
            else:
                places = vectors.places(scored["id"][:])
                graph = vectors.graph.take(places)
                dropped = find_duplicates(scored, vectors.at(places), max_similarity=limit, graph=graph)
            return Outcome(without(rows_at(outcome.columns(*JUDGED), has_score), dropped), dropped)

        return self.stages.outcome(UNIQUE, "dropping duplicates", RATED, work, new_texts=False)

    @property
    def low(self) -> Dataset:
        """The rows to distil, without their texts."""
        rows = self.unique.columns(*JUDGED)
        return rows_at(rows, np.flatnonzero(np.array(rows["score"][:]) < self.recipe.rate.threshold))

    @property
    def originals(self) -> Dataset:
        """The rows that may go into the dataset as they are, without their texts: high-scored ones and those alone."""
        rows, clusters = self.unique.columns(*JUDGED), table_of(self.clustered.columns("id", "cluster_id"))
        alone = clusters.filter(pc.field("cluster_id").is_null())["id"]
        is_alone = pc.is_in(table_of(rows)["id"], alone).to_numpy()
        is_high = np.array(rows["score"][:]) >= self.recipe.rate.threshold
        return rows_at(rows, np.flatnonzero(is_high | is_alone))

    @property
    def decontaminated_away(self) -> dict[str, str]:
        """Why rows left because they hold an evaluation text."""
        return self.clean.dropped if self.recipe.decontaminate.evaluations else {}

    @cached_property
    def unrated(self) -> list[str]:
        """Ids of the rows that nobody could judge."""
        rated = self.rated.columns("id", "score")
        return list(rows_at(rated, np.flatnonzero(~_has_score(rated)))["id"][:])

    @cached_property
    def clustered(self) -> Outcome:
        """The low-scored rows in clusters."""
        low = self.low
        title = f"clustering {len(low)} low-scored rows"
        return self.stages.outcome(CLUSTER, title, CLUSTERED, lambda: self._cluster(low), new_texts=False)

    def _cluster(self, low: Dataset) -> Outcome:
        places = self.vectors.places(low["id"][:])
        options: dict[str, Any] = {
            **vars(self.recipe.cluster),
            "seed": self.recipe.seed,
            "graph": self.vectors.graph.take(places),
        }
        vectors = self.vectors.at(places)
        if self.earlier is None:
            return clustering.cluster(low, vectors, **options)
        return attach(low, vectors, self.earlier.clusters(), **options)


def _has_score(rows: Dataset) -> np.ndarray:
    """Which rows have a score (n,)."""
    valid: np.ndarray = table_of(rows)["score"].is_valid().to_numpy()
    return valid
