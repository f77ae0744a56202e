import numpy as np
import pytest
from conftest import unit
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.clustering import NO_CLUSTER, Sizes, cluster, group
from hf_lmmixup.neighbors import build_graph


def made(ids):
    return Dataset.from_dict({"id": list(ids), "prompt": [f"p{i}" for i in ids], "completion": ["c"] * len(ids)})


def members(dataset):
    found = {}
    for identifier, number in zip(dataset["id"], dataset["cluster_id"], strict=True):
        found.setdefault(number, []).append(identifier)
    return found


# Two tight pairs at right angles and one row at right angles to both.
FIVE = unit([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1]])


@pytest.mark.parametrize(
    ("singletons", "clusters", "dropped"),
    [
        # the lone row passes on without a cluster
        ("keep", {0: ["a", "d"], 1: ["b", "e"], None: ["c"]}, {}),
        # the lone row is a cluster of one, numbered by its id between the two
        ("edit", {0: ["a", "d"], 1: ["b", "e"], 2: ["c"]}, {}),
        # the lone row is counted out
        ("drop", {0: ["a", "d"], 1: ["b", "e"]}, {"c": NO_CLUSTER}),
    ],
)
def test_singletons_are_routed(singletons, clusters, dropped):
    outcome = cluster(made("adbec"), FIVE, mean_size=2, std_size=0, singletons=singletons)
    assert members(outcome.dataset) == clusters
    assert outcome.dropped == dropped


@given(
    n=st.integers(0, 40),
    bounds=st.tuples(st.integers(1, 6), st.integers(0, 6)),
    floor=st.sampled_from([-1.0, 0.3, 0.9, 1.1]),
    seed=st.integers(0, 2**32 - 1),
    std=st.sampled_from([0.0, 1.0, 5.0]),
)
@settings(max_examples=60, deadline=None)
def test_sizes_floor_and_partition_hold(n, bounds, floor, seed, std):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(n, 3)) + 1e-3) if n else np.zeros((0, 3), np.float32)
    sizes = Sizes(bounds[0], bounds[0] + bounds[1], bounds[0] + bounds[1] / 2, std)
    ids = [f"{i:03}" for i in range(n)]
    labels = group(vectors, sizes.capacities(ids, seed), sizes, min_similarity=floor)
    counted = np.bincount(labels[labels >= 0]) if (labels >= 0).any() else np.zeros(0, int)
    assert ((counted >= sizes.min_size) & (counted <= sizes.max_size)).all()
    firsts = [int(np.flatnonzero(labels == number)[0]) for number in range(len(counted))]
    assert firsts == sorted(firsts)
    for number in range(len(counted)):
        rows = vectors[labels == number]
        # some row, the one that started the cluster, is related to every other
        off_diagonal = rows @ rows.T + 2 * np.eye(len(rows))
        assert len(rows) == 1 or off_diagonal.min(axis=1).max() >= floor - 1e-5


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize(("n", "kinds"), [(1000, 1), (3000, 1), (4000, 20)])
def test_rows_with_more_equals_than_a_graph_is_wide_are_clustered(n, kinds, kind):
    """All their lists name the same few rows, which are taken at once."""
    vectors = unit(np.random.default_rng(0).normal(size=(kinds, 64)))[np.arange(n) % kinds].astype(kind)
    for graph in (None, build_graph(vectors, 24)):
        rows = made([f"{i:04}" for i in range(n)])
        found = members(cluster(rows, vectors, graph=graph).dataset)
        assert None not in found
        assert {len(rows) for rows in found.values()} == {2, 3, 4, 5} and abs(n / len(found) - 3) < 0.15
        assert all(len({int(row) % kinds for row in rows}) == 1 for rows in found.values())


@given(seed=st.integers(0, 9999), n=st.integers(17, 80), floor=st.sampled_from([0.3, 0.9, 0.999, 0.99999, 1.0]))
@settings(max_examples=40, deadline=None)
def test_crowds_keep_sizes_and_floor(seed, n, floor):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(2, 8)))[rng.integers(0, 2, n)]
    vectors = unit(vectors + rng.choice([0, 1e-6, 1e-3, 3e-2]) * rng.normal(size=vectors.shape))
    sizes = Sizes(2, 5, 3, 1)
    labels = group(vectors, sizes.capacities([str(i) for i in range(n)], seed), sizes, min_similarity=floor)
    for number in range(labels.max(initial=-1) + 1):
        rows = vectors[labels == number]
        assert 2 <= len(rows) <= 5 and (rows @ rows.T + 2 * np.eye(len(rows))).min(axis=1).max() >= floor - 4e-5


@pytest.mark.parametrize("given_width", [None, 24])
def test_clusters_may_be_larger_than_a_graph_is_wide(given_width):
    rng = np.random.default_rng(0)
    vectors = unit(np.repeat(rng.normal(size=(4, 64)), 50, axis=0) + 0.25 * rng.normal(size=(200, 64)))
    graph = None if given_width is None else build_graph(vectors, given_width)
    sizes = {"min_size": 26, "max_size": 40, "mean_size": 30, "std_size": 0}
    outcome = cluster(made([f"{i:03}" for i in range(200)]), vectors, graph=graph, **sizes)
    found = members(outcome.dataset)
    found.pop(None, None)
    assert len(found) == 4 and all(30 <= len(rows) <= 40 for rows in found.values())


@pytest.mark.parametrize("share", [0.1, 0.03])
def test_a_few_rows_of_many_find_relatives_that_the_large_graph_does_not_list(share):
    """Where most rows are not to be clustered, they fill the lists of those that are."""
    rng = np.random.default_rng(0)
    vectors = unit(unit(rng.normal(size=(20, 64)))[np.arange(4000) % 20] + 0.08 * rng.normal(size=(4000, 64)))
    some = np.sort(rng.choice(4000, int(4000 * share), replace=False))
    rows, graph = made([f"{i:04}" for i in some]), build_graph(vectors, 24).take(some)
    outcome = cluster(rows, vectors[some], graph=graph, singletons="drop")
    assert len(outcome.dropped) < 0.05 * len(some)


@given(seed=st.integers(0, 10_000), n=st.integers(2, 60))
@settings(max_examples=30, deadline=None)
def test_row_order_has_no_influence(seed, n):
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(n, 4)))
    vectors[n // 2 :] = vectors[: n - n // 2]  # exact duplicates
    rows = made([f"{i:03}" for i in range(n)])
    shuffled = rng.permutation(n)
    first = cluster(rows, vectors).dataset
    second = cluster(rows.select(shuffled), vectors[shuffled]).dataset
    assert first.to_list() == second.to_list()


@pytest.mark.parametrize(
    ("n", "low", "high", "mean", "sizes"),
    [
        # one row cannot make a pair: the published size sampler never returns
        (1, 2, 5, 3, []),
        # an odd count of pairs
        (3, 2, 2, 2, [2]),
        # 7 is no sum of fours and fives
        (7, 4, 5, 4.5, [5]),
        (0, 2, 5, 3, []),
    ],
)
def test_impossible_sums_end(n, low, high, mean, sizes):
    vectors = unit(np.ones((n, 4))) if n else np.zeros((0, 4), np.float32)
    outcome = cluster(made([str(i) for i in range(n)]), vectors, min_size=low, max_size=high, mean_size=mean)
    found = [len(rows) for number, rows in members(outcome.dataset).items() if number is not None]
    assert len(outcome.dataset) == n
    assert len(found) == len(sizes) and all(low <= size <= high for size in found)


def test_capacities_follow_the_clipped_normal():
    drawn = Sizes(2, 5, 3, 1).capacities([str(i) for i in range(20_000)], seed=0)
    # P(2) = cdf(2.5), P(5) = 1 - cdf(4.5) of a normal with mean 3 and deviation 1
    shares = np.bincount(drawn, minlength=6)[2:] / len(drawn)
    assert np.abs(shares - [0.3085, 0.3829, 0.2417, 0.0668]).max() < 0.015


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"singletons": "lose"}, "Unknown singletons='lose'"),
        ({"min_size": 3, "max_size": 2}, "min_size=3, max_size=2"),
        ({"mean_size": 9}, "mean_size=9 lies outside"),
        ({"std_size": -1}, "std_size=-1 is negative"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        cluster(made("abcde"), FIVE, **arguments)


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match="1 of 5 rows repeat an id"):
        cluster(made("abcda"), FIVE)
    with pytest.raises(ValueError, match=r"4 rows need embeddings \(4, d\), not \(5, 3\)"):
        cluster(made("abcd"), FIVE)
    with pytest.raises(ValueError, match="not finite"):
        cluster(made("abcde"), FIVE * np.nan)
