import numpy as np
import pytest
from datasets import Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.records import MERGED
from hf_lmmixup.selection import (
    BEYOND_BUDGET,
    BEYOND_SHARE,
    BEYOND_SIZE,
    LOW_SCORE,
    SAME_AS_ORIGINAL,
    TOO_SIMILAR,
    UNSCORED,
    long_tail_scores,
    merge,
    min_max,
    select,
)


FEATURES = Features({name: Value("string") for name in ("id", "prompt", "completion")} | {"score": Value("int32")})


def rows(scores, rarity=None, texts=None, ids=None):
    ids = ids or [chr(97 + i) for i in range(len(scores))]
    columns = {"id": ids, "prompt": ["p"] * len(ids), "completion": texts or ["c"] * len(ids), "score": scores}
    if rarity is not None:
        columns["long_tail_score"] = rarity
    return Dataset.from_dict(columns)


@given(n=st.integers(1, 30), k=st.integers(1, 20), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_long_tail_is_the_mean_distance_to_the_nearest_others(n, k, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[n // 2 :] = vectors[: n - n // 2]
    expected = []
    for row in range(n):
        others = sorted(1 - float(vectors[row] @ vectors[other]) for other in range(n) if other != row)[:k]
        expected.append(sum(others) / len(others) if others else 0.0)
    np.testing.assert_allclose(long_tail_scores(vectors, k), expected, atol=1e-4)


def test_min_max():
    assert min_max(np.array([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    assert min_max(np.array([2.0, 2.0])).tolist() == [0.0, 0.0]
    assert min_max(np.zeros(0)).tolist() == []


@pytest.mark.parametrize(
    ("arguments", "kept", "dropped"),
    [
        # score first, then rarity, then id; None and low scores go
        ({}, ["d", "c", "a", "b"], {"e": LOW_SCORE, "f": UNSCORED}),
        ({"size": 2}, ["d", "c"], {"a": BEYOND_SIZE, "b": BEYOND_SIZE, "e": LOW_SCORE, "f": UNSCORED}),
        ({"size": 0}, [], dict.fromkeys("abcd", BEYOND_SIZE) | {"e": LOW_SCORE, "f": UNSCORED}),
        # unscored rows come last where no score is asked for
        ({"min_score": None}, ["d", "c", "a", "b", "e", "f"], {}),
        # "Q: p\nA: c" is 9 characters, 3 tokens
        ({"token_budget": 7}, ["d", "c"], {"a": BEYOND_BUDGET, "b": BEYOND_BUDGET, "e": LOW_SCORE, "f": UNSCORED}),
    ],
)
def test_select_orders_and_accounts(arguments, kept, dropped):
    outcome = select(rows([4, 4, 4, 5, 3, None], [0.5, 0.5, 0.7, 0.1, 1.0, 1.0]), **arguments)
    assert outcome.dataset["id"][:] == kept
    assert outcome.dropped == dropped


def test_a_shorter_row_follows_one_that_does_not_fit():
    data = rows([5, 5, 5], [0.9, 0.5, 0.1], ["x" * 92, "y" * 192, "z" * 92])
    outcome = select(data, token_budget=50)  # 25, 50, 25 tokens
    assert outcome.dataset["id"][:] == ["a", "c"]
    assert outcome.dropped == {"b": BEYOND_BUDGET}
    assert select(data, token_budget=50, count_tokens=lambda text: 20).dataset["id"][:] == ["a", "b"]


def test_rows_too_similar_to_a_better_one_are_passed_over():
    angles = np.radians([0, 18, 36, 90])  # cosine 0.951 between the first three, 0.809 two apart
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    data = rows([4, 5, 4, 4])
    outcome = select(data, embeddings=vectors, max_similarity=0.9)
    # the best row stays, and both of its neighbors go
    assert outcome.dataset["id"][:] == ["b", "d"]
    assert outcome.dropped == dict.fromkeys("ac", TOO_SIMILAR.format("b"))
    # a row that does not fit the budget blocks nothing
    texts = ["x", "x" * 100, "x", "x"]
    outcome = select(rows([4, 5, 4, 4], None, texts), embeddings=vectors, max_similarity=0.9, token_budget=9)
    assert outcome.dataset["id"][:] == ["d", "a", "c"]
    assert outcome.dropped == {"b": BEYOND_BUDGET}
    assert select(data, embeddings=vectors, max_similarity=0.9, size=1).dropped["d"] == BEYOND_SIZE
    with pytest.raises(ValueError, match=r"max_similarity=0\.9 compares embeddings"):
        select(rows([5], [0.1]), max_similarity=0.9)


@given(
    n=st.integers(0, 12),
    size=st.sampled_from([None, 0, 3]),
    budget=st.sampled_from([None, 0, 9, 30]),
    max_similarity=st.sampled_from([None, 0.5]),
    min_score=st.sampled_from([None, 4]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_every_row_is_kept_or_has_a_reason(n, size, budget, max_similarity, min_score, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = [None if score == 6 else int(score) for score in rng.integers(0, 7, n)]
    outcome = select(
        Dataset.from_dict(rows(scores).to_dict(), features=FEATURES),
        size=size,
        token_budget=budget,
        max_similarity=max_similarity,
        min_score=min_score,
        embeddings=vectors,
    )
    kept = outcome.dataset["id"][:]
    assert sorted([*kept, *outcome.dropped]) == [chr(97 + i) for i in range(n)]
    assert len(kept) <= (n if size is None else size)
    assert 3 * len(kept) <= (3 * n if budget is None else budget)


def test_select_computes_the_long_tail_score():
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    outcome = select(rows([5, 5, 5]), embeddings=vectors)
    # the third row is at right angles to both others, the first two at (0 + 1) / 2
    assert outcome.dataset["id"][:] == ["c", "a", "b"]
    assert outcome.dataset["long_tail_score"][:] == [1.0, 0.0, 0.0]


def test_select_needs_to_know_rarity():
    with pytest.raises(ValueError, match="no long_tail_score"):
        select(rows([5]))
    with pytest.raises(ValueError, match="size=-1"):
        select(rows([5], [0.1]), size=-1)


def distilled(ids, scores):
    return Dataset.from_dict(
        {
            "id": ids,
            "prompt": ["p"] * len(ids),
            "completion": ["c"] * len(ids),
            "reasoning": ["r"] * len(ids),
            "cluster_id": list(range(len(ids))),
            "sources": [["s", "t"]] * len(ids),
            "source_scores": [[1, None]] * len(ids),
            "distiller": ["m"] * len(ids),
            "prompt_hash": ["h"] * len(ids),
            "score": scores,
            "long_tail_score": [0.5] * len(ids),
        }
    )


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        # everything
        ({}, ["a", "b", "c", "x", "y"]),
        # the best of both together
        ({"size": 3}, ["a", "x", "y"]),
        # two of each, the best of each side
        ({"size": 4, "distilled_share": 0.5}, ["a", "b", "x", "y"]),
        # a short side shrinks the whole, the share holds
        ({"size": 10, "distilled_share": 0.5}, ["a", "b", "x", "y"]),
        ({"distilled_share": 0.5}, ["a", "b", "x", "y"]),
        ({"distilled_share": 0.0}, ["a", "b", "c"]),
        ({"distilled_share": 1.0, "size": 1}, ["x"]),
    ],
)
def test_merge_takes_the_asked_share(arguments, kept):
    outcome = merge(rows([5, 4, 4], [0.1, 0.3, 0.2]), distilled(["y", "x"], [5, 5]), **arguments)
    assert outcome.dataset["id"][:] == kept
    assert outcome.dropped == {identifier: BEYOND_SHARE for identifier in "abcxy" if identifier not in kept}
    assert outcome.dataset.features == MERGED


def test_a_share_that_no_float_holds_exactly_costs_no_row():
    outcome = merge(rows([5] * 43), distilled([f"x{i}" for i in range(7)], [5] * 7), distilled_share=0.14)
    assert len(outcome.dataset) == 50 and not outcome.dropped


def test_merged_rows_tell_where_they_come_from():
    outcome = merge(rows([5, 4]), distilled(["x", "a"], [5, 5]))
    assert outcome.dropped == {"a": SAME_AS_ORIGINAL}
    first, _, last = outcome.dataset.to_list()
    assert first == {
        "id": "a",
        "prompt": "p",
        "completion": "c",
        "reasoning": None,
        "cluster_id": None,
        "sources": ["a"],
        "source_scores": [5],
        "distiller": None,
        "prompt_hash": None,
        "source": None,
        "score": 5,
        "long_tail_score": None,
        "novelty": None,
        "coverage": None,
        "origin": "original",
    }
    assert (last["id"], last["origin"], last["sources"], last["cluster_id"]) == ("x", "distilled", ["s", "t"], 0)


def test_merge_refuses_what_is_no_share():
    with pytest.raises(ValueError, match="distilled_share=50 is not a share"):
        merge(rows([5]), distilled(["x"], [5]), distilled_share=50)
