import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.deduplication import SAME_TEXT, SIMILAR, deduplicate, normalized
from hf_lmmixup.neighbors import build_graph


def rows(texts, scores=None, ids=None):
    ids = ids or [chr(97 + i) for i in range(len(texts))]
    columns = {"id": ids, "prompt": ["p"] * len(ids), "completion": texts}
    return Dataset.from_dict(columns | ({"score": scores} if scores is not None else {}))


@pytest.mark.parametrize(
    ("texts", "scores", "kept", "dropped"),
    [
        # nothing repeats
        (["x", "y"], None, ["a", "b"], {}),
        # without scores the smallest id wins
        (["x", "y", "x"], None, ["a", "b"], {"c": SAME_TEXT.format("a")}),
        # the best score wins
        (["x", "x", "x"], [1, 3, 2], ["b"], {"a": SAME_TEXT.format("b"), "c": SAME_TEXT.format("b")}),
        # a score of 0 beats no score, and a tie goes by id
        (["x", "x", "x"], [None, 0, 0], ["b"], {"a": SAME_TEXT.format("b"), "c": SAME_TEXT.format("b")}),
        # case and white space make no difference
        (["Straße  und\tHaus", " STRASSE UND HAUS"], None, ["a"], {"b": SAME_TEXT.format("a")}),
        # punctuation does
        (["x?", "x!"], None, ["a", "b"], {}),
        ([], None, [], {}),
    ],
)
def test_equal_texts_leave_the_winner(texts, scores, kept, dropped):
    outcome = deduplicate(rows(texts, scores))
    assert outcome.dataset["id"][:] == kept
    assert outcome.dropped == dropped


@given(st.lists(st.text("aAbßẞsSıİIſ\u0130 \t\n\x1c\x85\xa0\u2003", max_size=4), max_size=12))
def test_equal_texts_in_any_script_are_found(texts):
    first = {}
    for place, text in enumerate(texts):
        first.setdefault(normalized(text), place)
    winners = [first[normalized(text)] for text in texts]
    outcome = deduplicate(rows(texts))
    assert outcome.dataset["id"][:] == [chr(97 + place) for place in sorted(first.values())]
    assert outcome.dropped == {
        chr(97 + place): SAME_TEXT.format(chr(97 + winner)) for place, winner in enumerate(winners) if winner != place
    }


def test_a_prompt_and_a_completion_are_two_texts():
    data = Dataset.from_dict({"id": ["a", "b"], "prompt": ["x y", "x"], "completion": ["z", "y z"]})
    assert len(deduplicate(data).dataset) == 2


@given(pairs=st.integers(1, 20), seed=st.integers(0, 999), k=st.sampled_from([None, 1, 10]))
@settings(max_examples=40, deadline=None)
def test_of_every_pair_exactly_one_stays_and_it_is_the_better_one(pairs, seed, k):
    """Peers drop both members of a pair, because each is the other's neighbor."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(pairs, 64))
    vectors = np.concatenate([vectors, vectors + 1e-3 * rng.normal(size=vectors.shape)]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    shuffled = rng.permutation(2 * pairs)
    scores = rng.integers(0, 3, 2 * pairs).tolist()
    ids = [f"{i:03}" for i in rng.permutation(2 * pairs)]
    data = rows([str(i) for i in range(2 * pairs)], [scores[i] for i in shuffled], [ids[i] for i in shuffled])
    graph = None if k is None else build_graph(vectors[shuffled], k)
    outcome = deduplicate(data, vectors[shuffled], graph=graph)
    kept = set(outcome.dataset["id"][:])
    for first in range(pairs):
        second = first + pairs
        winner, loser = sorted([first, second], key=lambda i: (-scores[i], ids[i]))
        assert ids[winner] in kept
        assert outcome.dropped[ids[loser]] == SIMILAR.format(ids[winner])
    assert len(kept) + len(outcome.dropped) == 2 * pairs


def test_a_row_with_the_same_text_is_named_as_such_though_its_embedding_is_the_same_too():
    vectors = np.eye(3, 8, dtype=np.float32)[[0, 0, 1]]
    outcome = deduplicate(rows(["x", "X", "y"]), vectors, graph=build_graph(vectors, 2))
    assert outcome.dropped == {"b": SAME_TEXT.format("a")}


def test_a_row_is_not_dropped_for_a_dropped_row():
    angles = np.radians([0, 18, 36])  # cosine 0.951 between next ones, 0.809 between the ends
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    outcome = deduplicate(rows(["x", "y", "z"]), vectors, max_similarity=0.9)
    assert outcome.dataset["id"][:] == ["a", "c"]
    assert outcome.dropped == {"b": SIMILAR.format("a")}


def test_normalized():
    assert normalized("  A\n\tb  C ") == "a b c"


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match="1 of 2 rows repeat an id"):
        deduplicate(rows(["x", "y"], ids=["a", "a"]))
    with pytest.raises(ValueError, match="2 rows need as many embeddings, not 3"):
        deduplicate(rows(["x", "y"]), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="The graph has 3 rows and the dataset 2"):
        deduplicate(rows(["x", "y"]), np.zeros((2, 2)), graph=build_graph(np.eye(3, dtype=np.float32), 1))
