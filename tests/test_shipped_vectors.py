import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lmmixup import bundled
from hf_lmmixup.encoder import ShippedEncoder, load_encoder
from hf_lmmixup.shipped_vectors import key, rows_of, shipped_texts, shipped_vectors


SHIPPED = shipped_texts()


class Counting:
    """Gives each text the vector that its length says, and remembers what it was asked for."""

    name, revision = "counting", "main"

    def __init__(self):
        self.asked = []

    def encode(self, texts):
        self.asked += texts
        rows = np.zeros((len(texts), 384), np.float32)
        rows[np.arange(len(texts)), [len(text) % 384 for text in texts]] = 1
        return rows


def test_every_shipped_text_has_its_vector_and_nothing_else_has():
    """If this fails, texts have changed: `python dataset_scripts/mixture.py vectors` computes the vectors again."""
    keys, vectors = shipped_vectors()
    assert rows_of(SHIPPED).tolist() == list(range(len(SHIPPED))) and len(keys) == len(SHIPPED)
    assert vectors.shape == (len(SHIPPED), 384) and vectors.dtype == np.float16
    assert {row.text for row in bundled.rated_texts("train")} < set(SHIPPED)


def test_the_vectors_are_those_of_the_encoder():
    some = SHIPPED[:: len(SHIPPED) // 8]
    computed = load_encoder(precision="float32").encode(some)
    shipped = load_encoder().encode(some)
    np.testing.assert_allclose(np.linalg.norm(shipped, axis=1), 1, atol=1e-6)
    assert (computed * shipped).sum(1).min() > 0.99999
    plain = load_encoder().encoder.encode(some)  # in the precision of this processor
    assert (plain * shipped).sum(1).min() > 0.999


@given(st.lists(st.integers(0, len(SHIPPED) - 1).map(SHIPPED.__getitem__) | st.text(max_size=20), max_size=12))
def test_only_other_texts_are_encoded_and_each_vector_stands_at_its_text(texts):
    below = Counting()
    encoder = ShippedEncoder(below)
    together = encoder.encode(texts)
    assert together.shape == (len(texts), 384) and together.dtype == np.float32
    others = set(texts) - set(SHIPPED)
    assert set(below.asked) == others
    for text, row in zip(texts, together, strict=True):
        assert (row == (below if text in others else encoder).encode([text])[0]).all()
    assert (encoder.name, encoder.revision) == ("counting", "main")


@pytest.mark.parametrize("text", ["", "\ud800", "\u0000", "x" * 100_000])
def test_odd_texts_have_a_key(text):
    assert -(2**63) <= key(text) < 2**63 and key(text) == key(text) != key(text + " ")
