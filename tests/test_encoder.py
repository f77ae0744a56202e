import subprocess
import sys

import numpy as np
import pytest
from hashing_encoder import HashingEncoder

from hf_lmmixup.encoder import (
    MAX_CHARACTERS,
    MINILM,
    CachedEncoder,
    SentenceTransformerEncoder,
    encodable,
    has_fast_bfloat16,
    load_encoder,
    unit_rows,
)


TEXTS = [
    "Q: Why do tides rise?\nA: The Moon pulls on the oceans.",
    "short",
    "Two tides come each day because the Earth turns beneath two bulges of water. " * 8,
    "Q: Why is the sky blue?\nA: Air scatters short waves more.",
]


@pytest.fixture(scope="module")
def minilm():
    return load_encoder(precision="float32")


def test_the_offline_default_needs_no_network_and_has_the_hub_name(minilm):
    assert (minilm.name, minilm.revision, minilm.precision) == (MINILM, None, "float32")
    rows = minilm.encode(TEXTS)
    assert rows.shape == (4, 384) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_vectors_are_those_of_sentence_transformers(minilm):
    """Against the library's own loop, one text at a time."""
    theirs = np.stack([minilm._model.encode(text, normalize_embeddings=True) for text in TEXTS])
    np.testing.assert_allclose(minilm.encode(TEXTS), theirs, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_vector_does_not_depend_on_what_else_is_encoded(minilm, precision):
    encoder = minilm if precision == "float32" else load_encoder(precision="bfloat16")
    together = encoder.encode(TEXTS)
    backwards = encoder.encode(TEXTS[::-1])[::-1]
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert (together == backwards).all() and (together == alone).all()
    if precision == "bfloat16":
        assert (together * minilm.encode(TEXTS)).sum(1).min() > 0.9995


def test_equal_texts_are_encoded_once_and_odd_ones_at_all(minilm):
    rows = minilm.encode(["a", "b", "a", "", "\ud800", "x" * 100_000])
    assert (rows[0] == rows[2]).all() and np.isfinite(rows).all()
    assert minilm.encode([]).shape == (0, 384)


def test_encodable_cuts_and_replaces():
    assert encodable("a\ud800b") == "a?b"
    assert len(encodable("x" * (MAX_CHARACTERS + 1))) == MAX_CHARACTERS


def test_unit_rows_leave_zeros_alone():
    assert unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[np.float32(0.6), np.float32(0.8)], [0.0, 0.0]]


def test_an_unknown_precision_is_named():
    with pytest.raises(
        ValueError, match=r"Unknown precision 'int3'. Expected one of \['auto', 'float32', 'bfloat16'\]"
    ):
        SentenceTransformerEncoder("anything", precision="int3")


@pytest.mark.parametrize("name", ["nosuch/encoder", "{folder}/nosuch"])
def test_an_encoder_that_is_not_there_is_named(tmp_path, name):
    name = name.format(folder=tmp_path)
    with pytest.raises(FileNotFoundError, match=f"No sentence encoder can be read from '{name}'"):
        load_encoder(name)


def test_the_precision_follows_the_processor():
    assert has_fast_bfloat16() in (True, False)
    assert load_encoder().encoder.precision == ("bfloat16" if has_fast_bfloat16() else "float32")


def test_a_missing_extra_is_named():
    program = (
        "import sys\n"
        "sys.modules['sentence_transformers'] = None\n"
        "from hf_lmmixup.encoder import load_encoder\n"
        "try:\n    load_encoder('x')\nexcept ImportError as error:\n    print(error)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == 'Embedding needs sentence-transformers: pip install "hf-lmmixup[embed]".\n'


def test_the_cache_encodes_a_text_once():
    inner = HashingEncoder()
    cached = CachedEncoder(inner)
    first = cached.encode(["a", "b", "a"])
    second = cached.encode(["b", "c"])
    assert inner.encoded == ["a", "b", "c"]
    assert (first[0] == first[2]).all() and (first[1] == second[0]).all()
    assert (cached.name, cached.revision) == ("hashing", None)
    assert cached.encode([]).shape == (0, 64)


def test_the_cache_forgets_what_was_not_used_for_longest():
    inner = HashingEncoder()
    cached = CachedEncoder(inner, capacity=2)
    for text in ("a", "b", "a", "c", "a", "b"):  # c pushes b out, so b is encoded again
        cached.encode([text])
    assert inner.encoded == ["a", "b", "c", "b"]
    assert cached.encode(["a", "b", "c"]).shape == (3, 64)  # more at once than it remembers
