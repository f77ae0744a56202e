"""The books of a run: every raw row that was read ends in exactly one state, and the states add up to the rows.

| state | detail |
|---|---|
| `kept` | the row itself is in the dataset |
| `merged` | id of the distilled row it went into, which is in the dataset |
| `dropped` | the reason |

One entry::

    {"id": "5f1d0c8f1f0b7a52", "state": "merged", "detail": "9c1fa07be4d2c611"}

Rows that never got an id, because they could not be read, are entered under their place (`pile.jsonl:17`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc


KEPT, MERGED, DROPPED = "kept", "merged", "dropped"

ENTRIES = pa.schema([(name, pa.string()) for name in ("id", "state", "detail")])

Column: TypeAlias = Sequence[str] | pa.Array | pa.ChunkedArray


class UnbalancedLedger(RuntimeError):
    """A row is in no state, or in two."""


def general(reason: str) -> str:
    """A reason without its particulars, which stand in parentheses at its end.

    >>> general("deduplicate: similar to another row (5f1d0c8f1f0b7a52)")
    'deduplicate: similar to another row'
    """
    return reason.partition(" (")[0]


@dataclass
class Ledger:
    """States of the rows of one run.

    Attributes:
        rows_in: Raw rows read.
        entries: Row id, or place, with its state and detail.
        notes: Sentences that a reader of the numbers must know.
    """

    rows_in: int
    entries: pa.Table = field(default_factory=ENTRIES.empty_table)
    notes: list[str] = field(default_factory=list)

    def keep(self, ids: Iterable[str]) -> None:
        """Enter rows that are in the dataset themselves."""
        known = list(ids)
        self.enter(known, [KEPT] * len(known), [""] * len(known))

    def drop(self, reasons: Mapping[str, str]) -> None:
        """Enter rows that left: row id or place -> reason."""
        self.enter(list(reasons), [DROPPED] * len(reasons), list(reasons.values()))

    def enter(self, ids: Column, states: Column, details: Column) -> None:
        """Enter rows, each with its state and detail.

        Raises:
            UnbalancedLedger: If a row is there already, or twice among these.
        """
        both = pa.concat_tables([self.entries, pa.table([ids, states, details], schema=ENTRIES)])
        if pc.count_distinct(both["id"]).as_py() < len(both):
            counts = pc.value_counts(both["id"])
            row = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
            found = both.filter(pc.equal(both["id"], row)).to_pylist()
            raise UnbalancedLedger(f"Row {row} is in {len(found)} states: {found}.")
        self.entries = both

    def without(self, reasons: Mapping[str, str]) -> "Ledger":
        """The books after rows have left, whatever state they were in: row id or place -> reason."""
        is_left = pc.invert(pc.is_in(self.entries["id"], pa.array(list(reasons), pa.string())))
        books = Ledger(self.rows_in, self.entries.filter(is_left), list(self.notes))
        books.drop(reasons)
        return books

    def summary(self) -> dict[str, Any]:
        """Counts by state, and by reason for dropped rows.

        Raises:
            UnbalancedLedger: If the states do not add up to the rows that were read.
        """
        states = Counter(self.entries["state"].to_pylist())
        if states.total() != self.rows_in:
            raise UnbalancedLedger(f"{self.rows_in} rows were read, but {states.total()} are accounted for: {states}.")
        details = {name: self.entries["detail"].filter(pc.equal(self.entries["state"], name)) for name in states}
        reasons = Counter(map(general, details[DROPPED].to_pylist() if DROPPED in details else []))
        return {
            "rows_in": self.rows_in,
            KEPT: states[KEPT],
            MERGED: states[MERGED],
            DROPPED: dict(sorted(reasons.items())),
            "dropped_total": states[DROPPED],
            "distilled_rows": pc.count_distinct(details[MERGED]).as_py() if MERGED in details else 0,
            "notes": self.notes,
        }

    def table(self) -> pa.Table:
        """The entries as columns `id`, `state` and `detail`, by id."""
        return self.entries.sort_by("id")
