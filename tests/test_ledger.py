"""The books of a run balance, or the run fails."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lmmixup.ledger import MERGED, Ledger, UnbalancedLedger


@given(st.lists(st.sampled_from(["keep", "merge", "drop: a", "drop: b"]), max_size=50))
def test_states_add_up_to_the_rows(states):
    ledger = Ledger(len(states))
    for number, state in enumerate(states):
        if state == "keep":
            ledger.keep([str(number)])
        elif state == "merge":
            ledger.enter([str(number)], [MERGED], ["into"])
        else:
            ledger.drop({str(number): state})
    summary = ledger.summary()
    assert summary["rows_in"] == summary["kept"] + summary["merged"] + sum(summary["dropped"].values())
    assert summary["dropped"] == {s: states.count(s) for s in sorted(set(states)) if s.startswith("drop")}
    assert summary["distilled_rows"] == ("merge" in states)


def test_a_missing_row_is_found():
    ledger = Ledger(2)
    ledger.keep(["a"])
    with pytest.raises(UnbalancedLedger, match="2 rows were read, but 1"):
        ledger.summary()


def test_a_row_in_two_states_is_found():
    ledger = Ledger(1)
    ledger.keep(["a"])
    with pytest.raises(UnbalancedLedger, match="Row a"):
        ledger.drop({"a": "duplicate"})


def test_table_is_sorted_by_id():
    ledger = Ledger(2)
    ledger.enter(["b"], [MERGED], ["x"])
    ledger.drop({"a": "duplicate"})
    assert ledger.table().to_pydict() == {
        "id": ["a", "b"],
        "state": ["dropped", "merged"],
        "detail": ["duplicate", "x"],
    }
