"""ROUGE-L and token similarity, against plain loops and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.overlap import MOST_WORDS, TokenEncoder, greedy_f1, rouge_l


BY_HAND = [  # text, reference, length of the longest common subsequence, words of either
    ("the moon pulls the sea", "the moon pulls the sea", 5, 5, 5),
    ("The Moon pulls the sea.", "the sea is pulled by the moon", 2, 5, 7),
    ("nothing", "in common", 0, 1, 2),
    ("Straße über", "STRASSE, über!", 2, 2, 2),  # case folds; not ASCII only
    ("月亮拉海", "月亮拉动海", 4, 4, 5),  # a script without blanks
    ("", "words", 0, 0, 1),
    ("", "", 0, 0, 0),
]


@pytest.mark.parametrize(("text", "reference", "common", "n", "m"), BY_HAND, ids=range(len(BY_HAND)))
def test_rouge_l_by_hand(text, reference, common, n, m):
    wanted = 2 * (common / n) * (common / m) / (common / n + common / m) if common else 0.0
    assert rouge_l(text, reference) == pytest.approx(wanted)


def test_rouge_l_of_very_long_texts_ends():
    assert rouge_l("word " * 100_000, "word " * 50_000) == 1.0
    assert MOST_WORDS == 1_000


vectors = st.integers(0, 5).flatmap(
    lambda n: st.lists(st.lists(st.floats(0.1, 1), min_size=3, max_size=3), min_size=n, max_size=n)
)


@settings(max_examples=60, deadline=None)
@given(vectors, vectors)
def test_greedy_matching_is_that_of_a_plain_loop(first, second):
    a, b = (np.array(rows, np.float64).reshape(-1, 3) for rows in (first, second))
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))
    if not first or not second:
        return_value = 0.0
    else:
        precision = sum(max(float(x @ y) for y in b) for x in a) / len(a)
        recall = sum(max(float(x @ y) for x in a) for y in b) / len(b)
        return_value = 2 * precision * recall / (precision + recall)
    assert greedy_f1(a, b) == pytest.approx(return_value)
    assert greedy_f1(a, b) == pytest.approx(greedy_f1(b, a))


@pytest.fixture(scope="module")
def encoder():
    return TokenEncoder()


def test_what_means_the_same_is_nearer_than_what_shares_a_form(encoder):
    reference = "The Moon's gravity moves the oceans."
    same, near, far = encoder.similarity(
        [reference, "The Moon pulls the sea.", "The bank's owner sold the shares."], [reference] * 3
    )
    assert same == pytest.approx(1.0, abs=1e-5)
    assert near > far + 0.1
    assert encoder.similarity(["", "words"], [reference, ""]) == [0.0, 0.0]


def test_a_batch_changes_nothing(encoder):
    texts = ["tides", "The Moon pulls the sea. " * 9, "iron rusts in wet air"]
    alone = [encoder.similarity([text], ["The Moon pulls the sea."])[0] for text in texts]
    assert encoder.similarity(texts, ["The Moon pulls the sea."] * 3) == pytest.approx(alone, abs=1e-5)


def test_each_text_needs_a_reference(encoder):
    with pytest.raises(ValueError, match="2 texts for 1 references"):
        encoder.similarity(["a", "b"], ["c"])
