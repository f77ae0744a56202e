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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


KEPT, MERGED, DROPPED = "kept", "merged", "dropped"


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
        entries: Row id, or place -> state and detail.
        notes: Sentences that a reader of the numbers must know.
    """

    rows_in: int
    entries: dict[str, tuple[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def keep(self, ids: Iterable[str]) -> None:
        """Enter rows that are in the dataset themselves."""
        self._enter(dict.fromkeys(ids, (KEPT, "")))

    def merge(self, into: Mapping[str, str]) -> None:
        """Enter rows that went into a distilled row: row id -> distilled row id."""
        self._enter({identifier: (MERGED, distilled) for identifier, distilled in into.items()})

    def drop(self, reasons: Mapping[str, str]) -> None:
        """Enter rows that left: row id or place -> reason."""
        self._enter({identifier: (DROPPED, reason) for identifier, reason in reasons.items()})

    def summary(self) -> dict[str, Any]:
        """Counts by state, and by reason for dropped rows.

        Raises:
            UnbalancedLedger: If the states do not add up to the rows that were read.
        """
        states = Counter(state for state, _ in self.entries.values())
        if states.total() != self.rows_in:
            raise UnbalancedLedger(f"{self.rows_in} rows were read, but {states.total()} are accounted for: {states}.")
        reasons = Counter(general(detail) for state, detail in self.entries.values() if state == DROPPED)
        return {
            "rows_in": self.rows_in,
            KEPT: states[KEPT],
            MERGED: states[MERGED],
            DROPPED: dict(sorted(reasons.items())),
            "dropped_total": states[DROPPED],
            "distilled_rows": len({detail for state, detail in self.entries.values() if state == MERGED}),
            "notes": self.notes,
        }

    def table(self) -> dict[str, list[str]]:
        """The entries as columns `id`, `state` and `detail`, by id."""
        ids = sorted(self.entries)
        return {
            "id": ids,
            "state": [self.entries[identifier][0] for identifier in ids],
            "detail": [self.entries[identifier][1] for identifier in ids],
        }

    def _enter(self, entries: dict[str, tuple[str, str]]) -> None:
        if not self.entries.keys().isdisjoint(entries):
            row = next(row for row in entries if row in self.entries)
            (state, detail), (other, more) = self.entries[row], entries[row]
            raise UnbalancedLedger(f"Row {row} is {state} {detail} and would also be {other} {more}.")
        self.entries |= entries
