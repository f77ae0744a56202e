"""Pairs from a stream: rows in windows, each window reordered into pairs of a confident and an unconfident row.

A stream (a `datasets.IterableDataset`, such as the mosaics of `hf_lmmixup.mosaic`) cannot be ranked as a whole, so a
threshold decides which rows are confident. Rows without a partner in their window wait for the next one; at the end of
the stream they pass unpaired. One row as it comes out: `{"input_ids": [...], "labels": [...], "mixup_row": 4711,
"mixup_half": 1}`, followed by its partner with `"mixup_half": -1`.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from hf_lmmixup.sftmix.confidence import CONFIDENT, UNCONFIDENT, UNPAIRED
from hf_lmmixup.sftmix.pairing import pair_order
from hf_lmmixup.sftmix.response_nll import row_key


logger = logging.getLogger(__name__)

ROW, HALF = "mixup_row", "mixup_half"
"""Columns of a prepared training set: the row's number (of a stream: a hash of its content) and its half."""

WINDOW = 1024
"""Rows of a stream that are paired at a time."""


class PairStream(IterableDataset):
    """Another stream's tokenized rows, reordered so that rows 2i and 2i+1 are a pair.

    Args:
        rows: Rows with `input_ids`, `labels` and a confidence.
        column: Column with the confidence.
        threshold: Rows with at least this confidence are confident.
        seed: Seed of the pairs.
        window: Rows paired at a time.
    """

    def __init__(
        self, rows: Iterable[dict[str, Any]], column: str, threshold: float, seed: int, window: int = WINDOW
    ) -> None:
        self.rows, self.column, self.threshold = rows, column, threshold
        self.seed, self.window, self.epoch = seed, window, 0
        self._looked = False

    def __len__(self) -> int:
        return len(self.rows)  # type: ignore[arg-type]  # a stream without a length raises TypeError, as it should

    def set_epoch(self, epoch: int) -> None:
        """Another order in another epoch, here and in the stream below."""
        self.epoch = epoch
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        waiting: list[dict[str, Any]] = []
        for row in self.rows:
            waiting.append(self._marked(row))
            if len(waiting) >= self.window:
                ready, waiting = self._paired(waiting, last=False)
                yield from ready
        yield from self._paired(waiting, last=True)[0]

    def _marked(self, row: dict[str, Any]) -> dict[str, Any]:
        half = half_of(row[self.column], self.threshold)
        return {**row, ROW: int(row_key(row["input_ids"], row["labels"])[:15], 16), HALF: half}

    def _paired(self, rows: list[dict], last: bool) -> tuple[list[dict], list[dict]]:
        """Rows in pairs, and the rows that wait: those without a partner, unless they fill half the window."""
        if not rows:
            return [], []
        rng = np.random.default_rng([self.seed, self.epoch, rows[0][ROW]])
        halves = np.array([row[HALF] for row in rows])
        if not self._looked and not {CONFIDENT, UNCONFIDENT} <= set(halves.tolist()):
            logger.warning(
                "No pair to mix in the first %d rows of the stream: all confidences in %r lie on one side of %s. "
                "Set confidence_threshold to their median.",
                len(rows),
                self.column,
                self.threshold,
            )
        self._looked = True
        surplus = (halves == CONFIDENT).sum() - (halves == UNCONFIDENT).sum()
        keeps = 0 if last or abs(surplus) * 2 > len(rows) else abs(surplus)
        longer = np.flatnonzero(halves == (CONFIDENT if surplus > 0 else UNCONFIDENT))
        waits = set(rng.permutation(longer)[:keeps].tolist())
        ready = [row for place, row in enumerate(rows) if place not in waits]
        order = pair_order(np.array([row[HALF] for row in ready]), rng)
        if len(order) % 2 and not last:  # an odd row would shift all pairs after it
            waits_too, order = [ready[order[-1]]], order[:-1]
        else:
            waits_too = []
        return [ready[place] for place in order], [rows[place] for place in sorted(waits)] + waits_too


def half_of(confidence: float | None, threshold: float) -> int:
    """The half of a row by a threshold; `UNPAIRED` where the confidence is unknown."""
    if confidence is None or math.isnan(confidence):
        return UNPAIRED
    return CONFIDENT if confidence >= threshold else UNCONFIDENT


def check_column(row: dict[str, Any], column: str) -> None:
    """Refuse a row of a stream without a column of confidences.

    Raises:
        ValueError: If there is no such column.
    """
    if column not in row:
        raise ValueError(
            f"The rows of the training stream have no column {column!r}; they have {sorted(row)}. For mosaics, set "
            f"MosaicConfig(keep_apart={column!r})."
        )


def median_of(rows: Iterable[dict[str, Any]], column: str) -> float:
    """Median of the known confidences of one pass.

    Raises:
        ValueError: If none of the values is known.
    """
    values = []
    for row in rows:
        if row[column] is not None and not math.isnan(row[column]):
            values.append(row[column])
    if not values:
        raise ValueError(f"No row of the training stream has a confidence in {column!r}; SFTMix needs two or more.")
    return float(np.median(values))
