"""Ids, seeds, ratings and task types."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lmmixup.records import Rating, TaskType, pair_text, row_id, row_seed


def test_row_id_is_pinned():
    # A change here breaks the lineage of every dataset made before.
    assert row_id("why sky blue", "scattering") == "2c43ab024d85f9fd"


@given(st.text(), st.text(), st.text(), st.text())
def test_row_ids_differ_where_texts_differ(a, b, c, d):
    assert (row_id(a, b) == row_id(c, d)) == ((a, b) == (c, d))


@given(st.text(), st.integers(0, 400), st.text())
def test_row_id_hashes_the_json_of_both_texts(prompt, times, completion):
    texts = [prompt, (completion + 'a "b" \\n\n') * times]
    canonical = json.dumps(texts, separators=(",", ":")).encode()
    assert row_id(*texts) == hashlib.sha256(canonical).hexdigest()[:16]


def test_row_id_keeps_the_border_between_the_texts():
    assert row_id("ab", "c") != row_id("a", "bc")


@given(st.integers(0, 2**31), st.text())
def test_row_seed_fits_a_signed_integer(seed, identifier):
    assert 0 <= row_seed(seed, identifier) < 2**63
    assert row_seed(seed, identifier) == row_seed(seed, identifier) != row_seed(seed + 1, identifier)


@pytest.mark.parametrize(("overall", "score"), [(1, 0), (4, 0), (5, 1), (6, 2), (7, 3), (8, 4), (9, 5), (10, 5)])
def test_score_is_the_clipped_overall_minus_four(overall, score):
    assert Rating(5, 5, 5, overall).score == score


@pytest.mark.parametrize("value", [0, 11, -3, 9.9, True, "7", None])
def test_rating_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match="overall="):
        Rating(5, 5, 5, value)


def test_unknown_task_type_names_the_five():
    with pytest.raises(ValueError, match=r"'paragraph'.*\['qa', 'mcq', 'tfq', 'cs', 'para'\]"):
        TaskType("paragraph")


def test_pair_text():
    assert pair_text("a", "b") == "Q: a\nA: b"
