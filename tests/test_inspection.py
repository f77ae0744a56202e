import json

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.inspection import inspect


FEATURES = Features(
    {name: Value("string") for name in ("id", "prompt", "completion")} | {"cluster_id": Value("int64")}
)


def clustered(numbers):
    ids = [f"{i:03}" for i in range(len(numbers))]
    columns = {"id": ids, "prompt": [f"p{i}" for i in ids], "completion": ["c"] * len(ids), "cluster_id": numbers}
    return Dataset.from_dict(columns, features=FEATURES)


def drawn(n, seed, d=5):
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(numbers=st.lists(st.sampled_from([None, 3, 4, 9, 11]), max_size=30), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_cohesion_fit_and_sizes_equal_plain_loops(numbers, seed):
    vectors = drawn(len(numbers), seed) if numbers else np.zeros((0, 5), np.float32)
    found = inspect(clustered(numbers), vectors)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    clusters = {}
    for row, number in enumerate(numbers):
        if number is not None:
            clusters.setdefault(number, []).append(row)
    cohesions = {}
    for number, rows in clusters.items():
        pairs = [float(vectors[a] @ vectors[b]) for a in rows for b in rows if a < b]
        if pairs:
            cohesions[number] = sum(pairs) / len(pairs)
    sizes = [len(rows) for rows in clusters.values()]
    assert found["rows"] == len(numbers)
    assert (found["clustered"], found["singletons"]) == (sum(sizes), numbers.count(None))
    assert found["clusters"] == len(clusters)
    assert found["sizes"] == {str(size): sizes.count(size) for size in sorted(set(sizes))}
    if not cohesions:
        assert found["cohesion"]["mean"] is None and found["samples"] == []
    else:
        assert found["cohesion"]["mean"] == pytest.approx(np.mean(list(cohesions.values())), abs=1e-5)
        assert sum(found["cohesion"]["counts"]) == len(cohesions)
        shown = {sample["cluster_id"]: sample for sample in found["samples"]}
        assert set(shown) == set(cohesions)
        for number, sample in shown.items():
            assert sample["cohesion"] == pytest.approx(cohesions[number], abs=1e-5)
            assert [int(member["id"]) for member in sample["members"]] == clusters[number]
    for outlier in found["outliers"]:
        row = int(outlier["id"])
        others = [other for other in clusters[outlier["cluster_id"]] if other != row]
        assert outlier["fit"] == pytest.approx(np.mean([vectors[row] @ vectors[other] for other in others]), abs=1e-5)
    fits = [outlier["fit"] for outlier in found["outliers"]]
    assert fits == sorted(fits)


def test_the_row_that_does_not_belong_is_the_first_outlier():
    vectors = drawn(1, 0).repeat(6, axis=0)
    vectors[4] = -vectors[4]
    found = inspect(clustered([0, 0, 0, 1, 1, 1]), vectors)
    assert found["outliers"][0]["id"] == "004"
    assert found["outliers"][0]["fit"] == pytest.approx(-1)
    assert found["samples"][0] | {"members": None} == {
        "kind": "loosest",
        "cluster_id": 1,
        "cohesion": pytest.approx(-1 / 3),
        "members": None,
    }


def test_the_map_is_the_plane_of_largest_variance():
    rng = np.random.default_rng(0)
    spread = np.array([5.0, 3.0, 0.1, 0.1])
    vectors = rng.normal(size=(200, 4)) * spread
    found = inspect(clustered([0] * 200), vectors)
    coordinates = np.array([found["map"]["x"], found["map"]["y"]])
    centered = (vectors - vectors.mean(0)).T
    assert abs(np.corrcoef(coordinates[0], centered[0])[0, 1]) > 0.99
    assert abs(np.corrcoef(coordinates[1], centered[1])[0, 1]) > 0.99
    assert found == inspect(clustered([0] * 200), vectors)


def test_the_map_of_many_rows_is_a_sample():
    found = inspect(clustered([0, None] * 50), drawn(100, 1), map_rows=10)
    assert all(len(column) == 10 for column in found["map"].values())
    assert found["map"]["id"] == sorted(set(found["map"]["id"]))


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match="2 rows need as many embeddings, not 3"):
        inspect(clustered([0, 0]), drawn(3, 0))
