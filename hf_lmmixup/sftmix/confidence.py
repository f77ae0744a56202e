"""How sure a reference model was of every response while it trained, and the two halves that SFTMix mixes.

A reference model is trained once on the data, and the perplexity of each response is noted at C checkpoints. The
confidence of a row is minus the arithmetic mean of those perplexities (not of their logarithms); the median splits the
data into a confident and an unconfident half (SFTMix, arXiv 2410.05248).

What is stored per row is the sum over the response's tokens, so parts can be merged and checked::

    {"id": "5f1d0c8f1f0b7a52", "checkpoints": [4, 8], "nll": [31.5, 24.9], "tokens": 11,
     "perplexity": [17.53, 9.62], "confidence": -13.57}
"""

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value


logger = logging.getLogger(__name__)

CONFIDENCE = Features(
    {
        "id": Value("string"),
        "checkpoints": List(Value("int32")),
        "nll": List(Value("float32")),
        "tokens": Value("int32"),
        "perplexity": List(Value("float64")),
        "confidence": Value("float64"),
    }
)

CONFIDENT, UNCONFIDENT, UNPAIRED = 1, -1, 0
"""The values of `split_by_confidence`."""

LARGEST_LOG_PERPLEXITY = 700.0
"""exp(700) is near the largest double, with room left for a sum; beyond it all responses count as equally bad."""


class ConfidenceRecord:
    """The negative log-likelihoods that one process has seen, keyed by row and checkpoint.

    The first value of a key stays: a row that fills up the last batch of an epoch comes twice, and which copy counts
    must not depend on the number of processes.
    """

    def __init__(self) -> None:
        self._nll: dict[str, dict[int, float]] = {}
        self._tokens: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._nll)

    def add(self, identifier: str, checkpoint: int, nll: float, tokens: int) -> None:
        """Note one response at one checkpoint.

        Args:
            identifier: Row id.
            checkpoint: Optimizer step (or epoch, in an online run) at which the model was asked.
            nll: Sum over the response's tokens of -log p, in nats, accumulated in float32.
            tokens: Number of those tokens.

        Raises:
            ValueError: If the row was seen with another number of tokens (another tokenizer or maximum length), or
                has none.
        """
        if tokens < 1:
            raise ValueError(f"Row {identifier} has no response tokens, so it has no perplexity. Leave it out.")
        if self._tokens.setdefault(identifier, tokens) != tokens:
            raise ValueError(
                f"Row {identifier} had {self._tokens[identifier]} response tokens and now {tokens}: the parts come "
                "from different tokenizers or maximum lengths. Record all of them with the same reference setup."
            )
        self._nll.setdefault(identifier, {}).setdefault(checkpoint, float(np.float32(nll)))

    def update(self, table: Dataset) -> None:
        """Add the rows of a stored table; values that are already there stay."""
        for row in table:
            for checkpoint, nll in zip(row["checkpoints"], row["nll"], strict=True):
                self.add(row["id"], checkpoint, nll, row["tokens"])

    def to_dataset(self) -> Dataset:
        """The table, sorted by row id and checkpoint: the same bytes for any number of processes."""
        columns: dict[str, list] = {name: [] for name in CONFIDENCE}
        for identifier in sorted(self._nll):
            checkpoints = sorted(self._nll[identifier])
            nll = [self._nll[identifier][checkpoint] for checkpoint in checkpoints]
            perplexity = perplexities(nll, self._tokens[identifier])
            values = (identifier, checkpoints, nll, self._tokens[identifier], perplexity, -float(np.mean(perplexity)))
            for name, value in zip(CONFIDENCE, values, strict=True):
                columns[name].append(value)
        return Dataset.from_dict(columns, features=CONFIDENCE)


def perplexities(nll: Sequence[float], tokens: int) -> list[float]:
    """exp(nll / tokens) for each checkpoint, in float64."""
    return [math.exp(min(value / tokens, LARGEST_LOG_PERPLEXITY)) for value in nll]


def merge_confidence(tables: Iterable[Dataset]) -> Dataset:
    """One table from the parts of several processes, resumed runs or reference checkpoints.

    Args:
        tables: Datasets with the columns of `CONFIDENCE`. Of two values for one row and checkpoint the first counts.

    Raises:
        ValueError: If a row has different numbers of tokens in two parts.
    """
    record = ConfidenceRecord()
    for table in tables:
        record.update(table)
    return record.to_dataset()


def save_confidence(table: Dataset, path: str | Path) -> Path:
    """Write a table as one Parquet file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    return path


def load_confidence(path: str | Path) -> Dataset:
    """Read a table that `save_confidence` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a confidence table.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist. Make it with: lmmixup confidence INPUT --output {path}")
    table = Dataset.from_parquet(str(path), keep_in_memory=True)
    missing = [name for name in CONFIDENCE if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} is no confidence table: it lacks {missing}; it has {table.column_names}.")
    return table.select_columns(list(CONFIDENCE))


def attach_confidence(dataset: Dataset, table: Dataset, *, column: str = "confidence") -> Dataset:
    """Join confidences to rows by id.

    Args:
        dataset: Rows with an `id`.
        table: A confidence table.
        column: Name of the column to write.

    Returns:
        The dataset with the column; rows that nobody measured hold `None`, and a warning counts them.

    Raises:
        ValueError: If the dataset has no ids, or none of them is in the table.
    """
    if "id" not in dataset.column_names:
        raise ValueError(f"The dataset has no `id` column to join by; it has {dataset.column_names}.")
    measured = dict(zip(table["id"][:], table["confidence"][:], strict=True))
    values = [measured.get(identifier) for identifier in dataset["id"][:]]
    if values and all(value is None for value in values):
        raise ValueError(
            f"None of the {len(values)} row ids is in the confidence table ({len(measured)} rows): it was made from "
            "other data. Ids are hashes of the content; record the confidence of this very dataset."
        )
    if missing := values.count(None):
        logger.warning("%d of %d rows are not in the confidence table; they train unmixed.", missing, len(values))
    if column in dataset.column_names:
        dataset = dataset.remove_columns(column)
    return dataset.add_column(column, values, feature=Value("float64"))


def split_by_confidence(confidence: Sequence[float | None], ids: Sequence[str] | None = None) -> np.ndarray:
    """The confident and the unconfident half of the data.

    Rows are ranked by confidence, highest first; equal confidences are ranked by id, so the split does not depend on
    the order of the file. The halves are equal: of an odd number of rows the middle one belongs to neither and trains
    with the ordinary loss alone, as do rows whose confidence is unknown (`None` or NaN).

    Args:
        confidence: (n,) values, `None` where unknown.
        ids: (n,) row ids for ties; the position where absent.

    Returns:
        (n,) int8: `CONFIDENT`, `UNCONFIDENT` or `UNPAIRED`.

    Example:
        >>> split_by_confidence([-2.0, -9.0, -2.0, None, -4.0], ids=["b", "x", "a", "y", "z"]).tolist()
        [1, -1, 1, 0, -1]
    """
    confidence = confidence[:]  # a column of `datasets` finds single values slowly
    tie = [str(identifier) for identifier in ids[:]] if ids is not None else [""] * len(confidence)
    known = [i for i, value in enumerate(confidence) if value is not None and not math.isnan(value)]
    ranked = sorted(known, key=lambda i: (-float(confidence[i] or 0.0), tie[i], i))
    half = len(ranked) // 2
    halves = np.full(len(confidence), UNPAIRED, dtype=np.int8)
    if half:
        halves[ranked[:half]] = CONFIDENT
        halves[ranked[-half:]] = UNCONFIDENT
    return halves
