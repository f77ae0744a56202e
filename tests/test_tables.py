"""Rows picked from Arrow tables in many pieces, against the same done with lists."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from hf_lmmixup.tables import best_first, dataset_of, gathered, rows_at, table_of, without


LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=6)
SCORED = st.lists(st.tuples(st.none() | st.integers(0, 2), st.none() | st.sampled_from([0.0, 0.25, 0.5])), max_size=12)


def in_pieces(lengths):
    """A table of texts and lists in chunks of these lengths."""
    starts = np.cumsum([0, *lengths]).tolist()
    pieces = [range(begin, begin + length) for begin, length in zip(starts, lengths, strict=False)]
    schema = pa.schema({"id": pa.string(), "sources": pa.list_(pa.int64())})
    return pa.concat_tables(
        pa.table({"id": [f"r{n:02}" for n in piece], "sources": [list(range(n)) for n in piece]}, schema=schema)
        for piece in pieces
    )


@given(LENGTHS, st.data())
def test_rows_come_in_the_order_asked_for_whatever_the_pieces(lengths, data):
    table = in_pieces(lengths)
    wanted = data.draw(st.lists(st.integers(0, len(table) - 1)) if len(table) else st.just([]))
    expected = [table.to_pylist()[place] for place in wanted]
    assert rows_at(dataset_of(table), wanted).to_list() == expected
    parts = list(gathered(table, np.array(wanted, np.int64), 3))
    assert [row for part in parts for row in part.to_pylist()] == expected
    assert [len(part) for part in parts[:-1]] == [3] * len(parts[:-1])


@given(LENGTHS, st.sets(st.integers(0, 40)))
def test_named_rows_go_and_the_others_keep_their_order(lengths, gone):
    table = in_pieces(lengths)
    ids = {f"r{number:02}" for number in gone}
    left = table_of(without(dataset_of(table), ids))["id"].to_pylist()
    assert left == [identifier for identifier in table["id"].to_pylist() if identifier not in ids]


@given(SCORED, st.randoms())
def test_best_rows_come_first_and_unknown_values_last(scored, random):
    ids = random.sample([f"{number:x}" for number in range(len(scored))], len(scored))
    columns = {"id": ids, "score": [score for score, _ in scored], "rarity": [rarity for _, rarity in scored]}
    schema = pa.schema({"id": pa.string(), "score": pa.int32(), "rarity": pa.float32()})

    def rank(row):
        low = [float("inf") if value is None else -value for value in scored[row]]
        return *low, ids[row]

    order = best_first(dataset_of(pa.table(columns, schema=schema)), "score", "rarity")
    assert order.tolist() == sorted(range(len(ids)), key=rank)
