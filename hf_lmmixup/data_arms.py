"""Data arms: the same model fine-tuned on different data, all of it from one run, and rows that no arm sees.

| arm | rows |
|---|---|
| `full raw` | every raw row |
| `random subset` | as many raw rows as there are distilled ones, drawn anew for each seed |
| `top-rated subset` | as many raw rows, best score first |
| `distilled` | the distilled rows of the dataset |
| `distilled + high` | the dataset: distilled rows and the raw rows that scored high at once |
| `+ mosaic` | the dataset, joined into mosaics (Mosaic-IT, arXiv 2405.13326) |
| `+ SFTMix` | the dataset, trained with SFTMix (arXiv 2410.05248) |

Source of the comparison: arXiv 2510.20449.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets

from hf_lmmixup.loading import load_rows
from hf_lmmixup.mosaic import build_mosaics
from hf_lmmixup.mosaic_config import MosaicConfig
from hf_lmmixup.records import HIGH_SCORE, LOADED, MERGED, RATED
from hf_lmmixup.run_directory import DROPPED, LEDGER, RATE, STAGES, UNIQUE, read_json, read_stage, shards_of
from hf_lmmixup.run_facts import count_rows
from hf_lmmixup.tables import best_first, dataset_of, without


FULL, RANDOM, TOP, DISTILLED = "full raw", "random subset", "top-rated subset", "distilled"
BOTH, MOSAIC, SFTMIX = "distilled + high", "+ mosaic", "+ SFTMix"
ARMS = (FULL, RANDOM, TOP, DISTILLED, BOTH, MOSAIC, SFTMIX)

HELD_OUT_SHARE = 0.2
"""Share of the raw rows that scored high which no arm sees, where no other test rows are named."""

MOST_HELD_OUT = 500
MAX_PASSES = 20
"""Mosaic passes that are written at most: after so many epochs they repeat."""


@dataclass(frozen=True)
class RunRows:
    """The rows of a run, without those that are held out.

    Attributes:
        raw: All raw rows, with `score`.
        dataset: The finished dataset, with `origin`.
        test: Held-out rows with `prompt` and `completion`.
    """

    raw: Dataset
    dataset: Dataset
    test: Dataset


def rows_of_run(run: str | Path, test: str | Path | None = None, *, seed: int = 0) -> RunRows:
    """Read the rows of a finished run and hold some out.

    Args:
        run: The run directory.
        test: Rows to test on, in any form that `lmmixup run` reads; by default a fifth of the raw rows that scored
            high. No arm sees a test row, a duplicate of one, or what was distilled from either.
        seed: Seed of that choice.

    Returns:
        The rows.

    Raises:
        FileNotFoundError: If the run is not finished, or its dataset lacks a file.
        ValueError: If no row is left to test on.
    """
    if not (Path(run) / LEDGER).is_file():
        raise FileNotFoundError(f"{run} is no finished run: there is no {LEDGER} in it.")
    raw = read_stage(Path(run) / STAGES / RATE, RATED)
    shards = shards_of(Path(run))
    count_rows(shards)
    written = pa.concat_tables(pq.read_table(shard, columns=list(MERGED)) for shard in shards)
    dataset = dataset_of(written.cast(MERGED.arrow_schema))
    if test is not None:
        held_out = load_rows(test).dataset
    else:
        high = [row for row, score in enumerate(raw["score"][:]) if score is not None and score >= HIGH_SCORE]
        count = min(MOST_HELD_OUT, round(HELD_OUT_SHARE * len(high)))
        drawn = np.random.default_rng(seed).permutation(len(high))[:count]
        held_out = raw.select(sorted(high[place] for place in drawn)).select_columns(list(LOADED))
    if not len(held_out):
        raise ValueError(f"{run} has too few high-scored rows to hold some out. Name test rows of your own.")
    tested = _with_duplicates(Path(run), set(held_out["id"][:]))
    behind = zip(dataset["id"][:], dataset["sources"][:], strict=True)
    seen = {row for row, sources in behind if row in tested or not tested.isdisjoint(sources)}
    return RunRows(without(raw, tested), without(dataset, seen), held_out)


def _with_duplicates(run: Path, tested: set[str]) -> set[str]:
    """Raw rows, with all that the run found to say the same."""
    file = run / STAGES / UNIQUE / DROPPED
    reasons = read_json(file) if file.is_file() else {}
    stands_for = {row: reason.rpartition("(")[2].rstrip(")") for row, reason in reasons.items()}

    def winner(row: str) -> str:
        while row in stands_for:
            row = stands_for[row]
        return row

    winners = set(map(winner, tested))
    return tested | winners | {row for row in stands_for if winner(row) in winners}


def arm_rows(rows: RunRows, arm: str, *, seed: int, passes: int = 1) -> Dataset:
    """The training rows of one arm, with `prompt` and `completion`.

    Args:
        rows: The rows of the run.
        arm: One of `ARMS`.
        seed: Seed of what is drawn: the random subset, the mosaics.
        passes: Mosaic passes, one after the other.

    Returns:
        The rows.

    Raises:
        ValueError: If the arm is unknown or has no row.
    """
    distilled = [place for place, origin in enumerate(rows.dataset["origin"][:]) if origin == "distilled"]
    size = min(len(distilled), len(rows.raw))
    if arm == FULL:
        chosen = rows.raw
    elif arm == RANDOM:
        chosen = rows.raw.select(sorted(np.random.default_rng(seed).permutation(len(rows.raw))[:size].tolist()))
    elif arm == TOP:
        chosen = rows.raw.select(best_first(rows.raw, "score")[:size])
    elif arm == DISTILLED:
        chosen = rows.dataset.select(distilled)
    elif arm in (BOTH, SFTMIX):
        chosen = rows.dataset
    elif arm == MOSAIC:
        return _mosaics(_pairs(rows.dataset), seed, passes)
    else:
        raise ValueError(f"Unknown arm {arm!r}. Expected some of {list(ARMS)}.")
    if not len(chosen):
        raise ValueError(f"The arm {arm!r} has no row: no distilled row is in the run's dataset. Leave the arm out.")
    return _pairs(chosen)


def _mosaics(rows: Dataset, seed: int, passes: int) -> Dataset:
    config = MosaicConfig(seed=seed, max_tokens=None, max_items=4)
    made = [build_mosaics(rows, None, config, epoch=epoch)[0] for epoch in range(min(passes, MAX_PASSES))]
    return _pairs(concatenate_datasets(made))


def _pairs(rows: Dataset) -> Dataset:
    return rows.select_columns(["prompt", "completion"])
