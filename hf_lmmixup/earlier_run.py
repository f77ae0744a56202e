"""A finished run that another one goes on from, with more rows: what it knows is not computed again.

    lmmixup run extractive --input pile-of-june.jsonl --output runs/june --update runs/may

Rows of the earlier run keep their vectors, scores and clusters; the answers in its journal are taken over, so only
clusters whose members changed are distilled again.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features

from hf_lmmixup.encoder import Encoder
from hf_lmmixup.fingerprint import changes_results, flatten
from hf_lmmixup.records import CLUSTERED, LOADED, RATED
from hf_lmmixup.run_directory import (
    ATTEMPTS,
    CLUSTER,
    DISTIL,
    EMBED,
    LEDGER,
    LOAD,
    MANIFEST,
    RATE,
    STAGES,
    read_arrow,
    read_json,
    read_stage,
)
from hf_lmmixup.tables import places_of, rows_at, table_of
from hf_lmmixup.vectors import DONE, Vectors


FREE = ("input", "limit", "decontaminate", "deduplicate", "faithfulness", "select")
"""Settings that may change: the rows themselves, and what only filters."""


class EarlierRun:
    """The stages of a finished run.

    Args:
        path: Its run directory.
        settings: The settings of the run that goes on from it.

    Raises:
        FileNotFoundError: If there is no finished run.
        ValueError: If it was made with other settings than those in `FREE`; names the first difference.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        if not (path / LEDGER).is_file():
            raise FileNotFoundError(f"{path} holds no finished run. Finish it, or run without --update.")
        before = flatten(read_json(path / MANIFEST)["recipe"])
        now = flatten(settings)
        for key in sorted(before | now):
            if key.partition(".")[0] not in FREE and changes_results(key, before.get(key), now.get(key)):
                raise ValueError(
                    f"{path} was made with {key}={before.get(key)!r}, but the recipe says {now.get(key)!r}. "
                    "Use the same recipe, or run without --update."
                )

    def vectors(self, encoder: Encoder) -> Vectors:
        """Its vectors.

        Raises:
            ValueError: If they are of another encoder.
        """
        folder = self.path / STAGES / EMBED
        made_by = read_json(folder / DONE)["encoder"]
        if made_by != encoder.name:
            raise ValueError(f"{self.path} was embedded by {made_by!r}, not {encoder.name!r}. Run without --update.")
        return Vectors(folder, self._rows(LOAD, LOADED)["id"][:])

    def rated(self, rows: Dataset) -> tuple[Dataset, Dataset]:
        """Those of the rows that it rated, with their ratings, and the others."""
        rated = self._rows(RATE, RATED)
        found = places_of(table_of(rows)["id"], table_of(rated)["id"])
        return rows_at(rated, found[found >= 0]), rows_at(rows, np.flatnonzero(found < 0))

    def clusters(self) -> dict[str, int]:
        """Row id -> cluster number, of rows that have one."""
        rows = self._rows(CLUSTER, Features({name: CLUSTERED[name] for name in ("id", "cluster_id")}))
        pairs = zip(rows["id"][:], rows["cluster_id"][:], strict=True)
        return {identifier: number for identifier, number in pairs if number is not None}

    def asked(self) -> pa.Array:
        """Hashes of the prompts whose completions are in its journal."""
        path = self.path / STAGES / DISTIL / ATTEMPTS
        return read_arrow(path)["prompt_hash"].combine_chunks() if path.is_file() else pa.array([], pa.string())

    def _rows(self, stage: str, features: Any) -> Dataset:
        return read_stage(self.path / STAGES / stage, features)
