import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.features import BUCKET_WIDTH, BUCKETS, FEATURES, text_features, text_parts, word_buckets


PARTS = [
    # task type, text, head, body
    ("qa", "Q: Why?\nA: Because.", "Why?", "Because."),
    ("mcq", "Q: Which?\nA) one\nB) two\nAnswer: A) one", "Which?", "one\nB) two\nAnswer: A) one"),
    ("tfq", "Statement: Ice floats.\nAnswer: True. It is light.", "Ice floats.", "True. It is light."),
    ("cs", "C: Tides\nS: The Moon pulls.", "Tides", "The Moon pulls."),
    ("para", "First one. Second one.", "First one", "Second one."),
    ("qa", "no labels here", "no labels here", "no labels here"),  # without its divider a text is both
    ("para", "", "", ""),
]


@pytest.mark.parametrize(("kind", "text", "head", "body"), PARTS)
def test_parts(kind, text, head, body):
    assert text_parts(text, kind) == (head, body)


def test_counts_of_one_text():
    [row] = text_features(
        ["Q: Why is the sky blue?\nA: Light scatters, since air is thin. So 1 colour wins; basically."], ["qa"]
    )
    counted = dict(zip(FEATURES, row, strict=True))
    assert counted["body words"] == pytest.approx(np.log1p(11))
    assert counted["head words"] == pytest.approx(np.log1p(5))
    assert counted["share of figures"] == pytest.approx(1 / 11)
    assert counted["share of filler words"] == pytest.approx(1 / 11)
    assert counted["share of linking words"] == pytest.approx(2 / 11)  # since, so
    assert counted["sentences"] == pytest.approx(np.log1p(2))
    assert (counted["head asks"], counted["body ends a sentence"], counted["hesitation marks"]) == (1, 1, 0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=300), max_size=4), st.sampled_from(["qa", "mcq", "tfq", "cs", "para"]))
def test_any_text_has_finite_counts_that_do_not_depend_on_the_others(texts, kind):
    together = text_features(texts, [kind] * len(texts))
    buckets = word_buckets(texts, [kind] * len(texts))
    assert together.shape == (len(texts), len(FEATURES)) and together.dtype == np.float32
    assert buckets.shape == (len(texts), BUCKET_WIDTH) and buckets.max(initial=0) < BUCKETS
    assert np.isfinite(together).all()
    for row, text in enumerate(texts):
        assert (text_features([text], [kind])[0] == together[row]).all()
        assert (word_buckets([text], [kind])[0] == buckets[row]).all()


def test_buckets_are_the_same_in_every_process():
    """crc32, not `hash`, which is salted."""
    found = word_buckets(["Q: Name two rivers\nA: x"], ["qa"])[0]
    assert found[:4].tolist() == [1388, 747, 454, 1097] and len(set(found[found > 0])) == (found > 0).sum()
