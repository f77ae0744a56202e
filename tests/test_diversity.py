import numpy as np
import pytest
from conftest import unit
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_lmmixup import diversity
from hf_lmmixup.diversity import keep_diverse
from hf_lmmixup.neighbors import build_graph, rounded


def plain(vectors, order, max_similarity, limit, passed_over=()):
    kept = []
    for row in order:
        near = any(rounded(np.array([vectors[row] @ vectors[other]]))[0] > max_similarity for other in kept)
        if len(kept) < limit and not near and row not in passed_over:
            kept.append(row)
    return kept


@given(
    n=st.integers(1, 60),
    k=st.sampled_from([None, 1, 3, 80]),
    block=st.sampled_from([1, 4, 1024]),
    max_similarity=st.sampled_from([-0.5, 0.3, 0.9, 0.999, 1.0]),
    limit=st.sampled_from([None, 0, 1, 7]),
    seed=st.integers(0, 9999),
)
@settings(max_examples=150, deadline=None)
def test_same_rows_as_a_plain_loop(n, k, block, max_similarity, limit, seed):
    """With and without a graph, however narrow, and for any block size."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(n, 3)))
    # Many exact duplicates and many near ones.
    vectors = vectors[rng.integers(0, n, n) // 3]
    vectors[::2] = unit(vectors[::2] + 0.02 * rng.normal(size=vectors[::2].shape))
    order = rng.permutation(n)
    passed_over = set(rng.choice(n, n // 5, replace=False).tolist())
    cosines = vectors @ vectors.T
    # A cosine on the very limit may fall on either side of it.
    assume(max_similarity == 1 or (np.abs(cosines - max_similarity) > 1e-4).all())
    graph = None if k is None else build_graph(vectors, k)
    diversity.BLOCK, before = block, diversity.BLOCK
    try:
        found = keep_diverse(
            vectors, order, max_similarity, limit=limit, accept=lambda row: row not in passed_over, graph=graph
        )
    finally:
        diversity.BLOCK = before
    assert found.kept == plain(vectors, order.tolist(), max_similarity, n if limit is None else limit, passed_over)
    kept = set(found.kept)
    for row, blocker in enumerate(found.blockers.tolist()):
        assert (row in kept) <= (blocker == -1)
        assert blocker == -1 or (blocker in kept and cosines[row, blocker] > max_similarity - 1e-4)


def test_a_chain_keeps_both_ends():
    angles = np.radians([0, 18, 36])  # cosine 0.951 between next ones, 0.809 between the ends
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = keep_diverse(vectors, np.arange(3), 0.9)
    assert found.kept == [0, 2]
    assert found.blockers.tolist() == [-1, 0, -1]


@pytest.mark.parametrize("k", [None, 5])
def test_a_crowd_of_duplicates_wider_than_the_graph_leaves_one(k):
    vectors = np.tile(unit([[1, 2, 3]]), (3000, 1))
    found = keep_diverse(vectors, np.arange(3000), 0.99, graph=k and build_graph(vectors, k))
    assert found.kept == [0]
    assert (found.blockers[1:] == 0).all()
