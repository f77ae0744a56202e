"""What a run will take, from a sample of its rows: rows, tokens, time, money and disk of each stage, as ranges.

Reading, embedding, rating and the extractive mode are measured on the sample. How many rows will be clustered follows
from the sample's scores (95 % Wilson interval), how many clusters from the wanted sizes. A model that writes is not
started: its rate is a range for its kind, or what the caller says. One line::

    Estimate("distil", rows=(90, 160), tokens=(52000, 140000), seconds=(60.0, 900.0), money=None, disk=(90000, 300000))
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, Value

from hf_lmmixup.extractive import distill_extractively
from hf_lmmixup.inputs import raw_rows
from hf_lmmixup.loading import normalize_rows
from hf_lmmixup.preparation import Preparation, Tools
from hf_lmmixup.prompts import distillation_messages
from hf_lmmixup.recipe import COLD_START, EXTRACTIVE, GRPO, TINY, TRAINED, Recipe
from hf_lmmixup.records import CHARACTERS_PER_TOKEN, pair_text
from hf_lmmixup.run_directory import RunDirectory
from hf_lmmixup.stages import Stages
from hf_lmmixup.strict_yaml import read_yaml
from hf_lmmixup.vectors import NEIGHBORS, texts_of


Range = tuple[float, float]

Item = TypeVar("Item")

SAMPLE = 200
SCANNED = 200_000
"""Rows over which the sample is spread; rows behind them are only counted."""

SPREAD = (0.7, 1.6)
"""What a rate measured on a sample is multiplied by: other lengths, other load, a warmer cache."""

CLUSTERED = (0.5, 1.0)
"""Share of the low-scored rows that has relatives; a sample is too thin to tell."""

WITHOUT_TEXTS = (12.0, 120.0)
"""Bytes a row of a stage that leaves texts where they were loaded: id, score and cluster, or why it was dropped."""

WRITTEN_TOKENS_PER_SECOND = {
    "endpoint": (20.0, 80.0),  # of each request in flight
    "vllm": (1500.0, 10_000.0),
    "transformers": (20.0, 2000.0),  # a processor with a 1B model ... a GPU with a 7B model
    "paged": (300.0, 4000.0),
    TINY: (500.0, 4000.0),
}
"""Tokens written a second, by what writes them: wide, because the hardware is not asked."""

SECONDS_PER_STEP = {
    TINY: {"reading": (0.2, 3.0), COLD_START: (0.2, 3.0), GRPO: (3.0, 30.0)},
    "other": {COLD_START: (2.0, 60.0), GRPO: (10.0, 600.0)},
}
"""One optimizer step, by model and training; GRPO writes its completions first."""

WILSON = 1.96


@dataclass(frozen=True)
class Estimate:
    """What one stage will take: lowest and highest value; `None` where nothing can be said.

    Attributes:
        stage: Its name.
        rows: Rows, or clusters, that it works on.
        tokens: Tokens read and written by a model.
        seconds: Time.
        money: US dollars.
        disk: Bytes.
    """

    stage: str
    rows: Range
    tokens: Range | None = None
    seconds: Range | None = None
    money: Range | None = None
    disk: Range | None = None


def plan(
    recipe: Recipe, *, sample: int = SAMPLE, tools: Tools | None = None, tokens_per_second: float | None = None
) -> list[Estimate]:
    """Estimate what a run of a recipe will take.

    Args:
        recipe: The recipe; nothing is written into its run directory.
        sample: Rows that are tried.
        tools: As for `pipeline.run`.
        tokens_per_second: What the model writes, if known.

    Returns:
        The stages in their order.

    Raises:
        FileNotFoundError: If the input does not exist.
        ValueError: If it holds no usable row.
    """
    with TemporaryDirectory() as folder:
        preparation = Preparation(recipe, Stages(RunDirectory(folder), lambda *_: None), tools or Tools())
        return _Planner(recipe, preparation, sample, tokens_per_second).estimates()


def count_rows(source: str) -> int | None:
    """Raw rows of a file, without reading them; `None` for what is no file."""
    path = Path(source)
    if path.suffix == ".parquet" and path.is_file():
        return int(pq.ParquetFile(path).metadata.num_rows)
    if path.suffix in (".jsonl", ".ndjson") and path.is_file():
        with path.open("rb") as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(2**20), b""))
    return None


def thinned(items: Iterable[Item], wanted: int) -> tuple[list[Item], int]:
    """From `wanted` to twice as many items, evenly spread over as many as there are, and how many those are."""
    kept: list[Item] = []
    every, number = 1, 0
    for number, item in enumerate(items, start=1):
        if (number - 1) % every == 0:
            kept.append(item)
        if len(kept) == 2 * wanted:
            kept, every = kept[::2], 2 * every
    return kept, number


class _Planner:
    """One plan in the making."""

    def __init__(self, recipe: Recipe, preparation: Preparation, sample: int, tokens_per_second: float | None) -> None:
        self.recipe, self.preparation, self.tokens_per_second = recipe, preparation, tokens_per_second
        source = preparation.source
        raw = islice(raw_rows(source), recipe.limit)
        started = time.perf_counter()
        some, scanned = thinned(islice(raw, SCANNED), sample)
        rows = normalize_rows(some, name=Path(source).name).dataset
        self.read = (time.perf_counter() - started) / max(1, scanned)
        if not len(rows):
            raise ValueError(f"{source} holds no usable row. Give a file with at least one instruction pair.")
        self.rows = rows.select(np.linspace(0, len(rows) - 1, min(sample, len(rows))).astype(np.int64))
        total = scanned if scanned < SCANNED else count_rows(source)
        if total is None:
            total = scanned + sum(1 for _ in raw)
        self.total = float(min(total, recipe.limit or total))

    def estimates(self) -> list[Estimate]:
        rows, total, bytes_each = self.rows, (self.total, self.total), _bytes_each(self.rows)
        texts = list(texts_of(rows))
        encode = self.preparation.encoder.encode
        encode(texts[:1])  # loads the model
        vectors, embedding = _timed(lambda: encode(texts))
        if self.preparation.tools.judge is None:
            _ = self.preparation.datastore  # built now, so that its time is not the rating's
        rated, judging = _timed(lambda: self.preparation.judge_alone(rows).dataset)
        low = self._low(rated)
        clustered = (low[0] * CLUSTERED[0], low[1] * CLUSTERED[1])
        options = self.recipe.cluster
        clusters = (clustered[0] / min(options.max_size, options.mean_size + 1), clustered[1] / options.min_size)
        vector_bytes = vectors.shape[1] * 2 + NEIGHBORS * 6 + 4
        found = [
            Estimate(
                "load",
                total,
                seconds=_each(total, self.read),
                disk=_times(total, (0.9 * bytes_each, 1.2 * bytes_each)),
            ),
            Estimate(
                "embed",
                total,
                seconds=_each(total, embedding / len(rows) + 2e-4),
                disk=_times(total, (vector_bytes, vector_bytes)),
            ),
            Estimate("rate", total, seconds=_each(total, judging / len(rows)), disk=_times(total, WITHOUT_TEXTS)),
            Estimate("cluster", low, seconds=_each(low, 3e-4), disk=_times(low, WITHOUT_TEXTS)),
            *self._training(),
            self._distil(clusters, bytes_each),
        ]
        again = _each(clusters, (embedding + judging) / len(rows))
        return [*found, Estimate("rate again", clusters, seconds=again, disk=_times(clusters, (bytes_each, 6e3)))]

    def _low(self, rated: Dataset) -> Range:
        """How many rows will score below the threshold: a Wilson interval."""
        scores = [score for score in rated["score"][:] if score is not None]
        n = max(1, len(scores))
        share = sum(score < self.recipe.rate.threshold for score in scores) / n
        middle = (share + WILSON**2 / (2 * n)) / (1 + WILSON**2 / n)
        half = WILSON * math.sqrt(share * (1 - share) / n + WILSON**2 / (4 * n * n)) / (1 + WILSON**2 / n)
        judged = self.total * len(scores) / len(rated)
        return max(0.0, middle - half) * judged, min(1.0, middle + half) * judged

    def _training(self) -> list[Estimate]:
        options = self.recipe.distiller
        files = {name: file for name, file in ((COLD_START, options.cold_start), (GRPO, options.grpo)) if file}
        if options.mode != TRAINED or not files:
            return []
        steps: dict[str, Any] = {
            name: read_yaml(self.recipe.training_file(file)).get("max_steps") for name, file in files.items()
        }
        if options.model == TINY:
            steps["reading"] = options.reading_steps
        if any(not isinstance(count, int) or count < 0 for count in steps.values()):
            return [Estimate("train", (0.0, 0.0))]
        paces = SECONDS_PER_STEP[TINY if options.model == TINY else "other"]
        parts = [_times((count, count), paces[name]) for name, count in steps.items()]
        return [Estimate("train", (0.0, 0.0), seconds=(sum(low for low, _ in parts), sum(high for _, high in parts)))]

    def _distil(self, clusters: Range, bytes_each: float) -> Estimate:
        size = max(1, round(self.recipe.cluster.mean_size))
        texts = list(texts_of(self.rows))
        groups = [texts[start : start + size] for start in range(0, len(texts), size)]
        disk = _times(clusters, (0.5 * bytes_each, 3 * bytes_each + 2000))
        if self.recipe.distiller.mode == EXTRACTIVE:
            count = 8 * size
            some = self.rows.select(range(min(count, len(self.rows))))
            numbers = [place // size for place in range(len(some))]
            some = some.add_column("cluster_id", numbers, feature=Value("int64"))  # rows as they come: unrelated ones
            _, spent = _timed(lambda: distill_extractively(some, self.preparation.encoder))
            return Estimate("distil", clusters, seconds=_each(clusters, spent / (numbers[-1] + 1)), disk=disk)
        messages = [distillation_messages(group) for group in groups]
        sizes = [sum(len(one["content"].encode()) for one in each) for each in messages]
        read = float(np.mean(sizes)) / CHARACTERS_PER_TOKEN
        mean = float(np.mean([len(text.encode()) for text in texts])) / CHARACTERS_PER_TOKEN
        options = self.recipe.distiller
        written = (min(options.max_new_tokens, 0.5 * mean + 40), min(options.max_new_tokens, 2 * mean + 200))
        tries = (1.0, float(options.attempts))
        asked = (clusters[0] * tries[0], clusters[1] * (1 + (tries[1] - 1) * 0.3))
        tokens = _times(asked, (read + written[0], read + written[1]))
        money = None
        if options.prompt_price is not None and options.completion_price is not None:
            each = [(read * options.prompt_price + out * options.completion_price) / 1e6 for out in written]
            money = _times(asked, (each[0], each[1]))
        pace = self._pace()
        seconds = (asked[0] * written[0] / pace[1], asked[1] * written[1] / pace[0])
        return Estimate("distil", clusters, tokens, seconds, money, disk)

    def _pace(self) -> Range:
        options = self.recipe.distiller
        if self.tokens_per_second:
            return self.tokens_per_second / SPREAD[1], self.tokens_per_second / SPREAD[0]
        if options.endpoint is not None:
            return _times((options.concurrency, options.concurrency), WRITTEN_TOKENS_PER_SECOND["endpoint"])
        return WRITTEN_TOKENS_PER_SECOND[TINY if options.model == TINY else options.engine]


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def _times(one: Range, other: Range) -> Range:
    return one[0] * other[0], one[1] * other[1]


def _each(rows: Range, seconds: float) -> Range:
    return _times(rows, (seconds * SPREAD[0], seconds * SPREAD[1]))


def _bytes_each(rows: Dataset) -> float:
    """Bytes of a row's texts."""
    lengths = [len(pair_text(row["prompt"], row["completion"]).encode()) + 40 for row in rows]
    return float(np.mean(lengths))
