import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import unit
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hf_lmmixup.diversity import keep_diverse
from hf_lmmixup.half_precision import check_finite
from hf_lmmixup.neighbors import NO_HORIZON, STEPS, NeighborGraph, build_graph, top_k


def drawn(n, d, seed, duplicates=0):
    vectors = unit(np.random.default_rng(seed).normal(size=(n, d)))
    vectors[n - duplicates :] = vectors[0]
    return vectors


def grouped(n, seed=0, d=32, spread=0.4):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(n // 20, d))
    return unit(centers[np.arange(n) % len(centers)] + spread * rng.normal(size=(n, d)))


def equal(first, second):
    return (
        (first.indices == second.indices).all()
        and (first.similarities == second.similarities).all()
        and (first.horizon == second.horizon).all()
        and first.recall == second.recall
    )


@given(n=st.integers(1, 25), k=st.integers(1, 30), duplicates=st.integers(0, 10), seed=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_graph_equals_a_plain_loop(n, k, duplicates, seed):
    vectors = drawn(n, 4, seed, min(duplicates, n - 1))
    graph = build_graph(vectors, k)
    assert graph.indices.dtype == np.int32 and graph.similarities.dtype == np.float32
    assert graph.indices.shape == graph.similarities.shape == (n, min(k, n - 1)) and graph.recall == 1.0
    for row in range(n):
        others = sorted((float(vectors[row] @ vectors[other]) for other in range(n) if other != row), reverse=True)
        neighbors = graph.indices[row].tolist()
        assert row not in neighbors and len(set(neighbors)) == len(neighbors)
        np.testing.assert_allclose(graph.similarities[row], others[:k], atol=2e-5)
        ranked = list(zip(-graph.similarities[row], neighbors, strict=True))
        assert ranked == sorted(ranked)
        missing = [float(vectors[row] @ vectors[other]) for other in range(n) if other not in {row, *neighbors}]
        assert max(missing, default=NO_HORIZON) <= graph.horizon[row] + 2e-5


THREADS = """
import hashlib
import numpy as np
from hf_lmmixup.neighbors import build_graph
vectors = np.random.default_rng(0).normal(size=(3000, 48)).astype(np.float32)
vectors[::3] = vectors[0]
graph = build_graph(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 24)
print(hashlib.sha256(graph.indices.tobytes() + graph.similarities.tobytes()).hexdigest())
"""


def test_any_number_of_threads_finds_the_same_neighbors_of_equal_rows():
    """The last bits of products, which differ between numbers of threads, choose among a thousand equal rows."""
    command, found = [sys.executable, "-c", THREADS], set()
    for threads in ("1", "2", "5"):
        known = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        found.add(subprocess.run(command, env=known, check=True, capture_output=True, text=True).stdout)
    assert len(found) == 1


def test_a_row_crowded_out_by_its_duplicates_is_still_not_its_own_neighbor():
    graph = build_graph(np.tile(unit([[1, 2]]), (30, 1)), 5)
    assert all(row not in graph.indices[row] for row in range(30))
    assert (graph.similarities == 1).all()


def test_cells_find_what_the_exact_search_finds(caplog):
    vectors = grouped(6000)
    with caplog.at_level(logging.INFO, "hf_lmmixup.neighbors"):
        graph = build_graph(vectors, 10, exact_below=0)
    exact = build_graph(vectors, 10)
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(exact.indices.tolist(), graph.indices.tolist(), strict=True)]
    assert graph.recall >= 0.95
    # the sample's recall is the recall of all rows, up to the error of a sample of 512
    assert abs(np.mean(shared) - graph.recall) < 0.02
    assert f"recall {graph.recall:.3f}" in caplog.text
    assert equal(graph, build_graph(vectors, 10, exact_below=0))


def test_cells_hold_duplicates_and_few_rows():
    for n in (2, 5, 700):
        graph = build_graph(np.tile(unit([[1, 2, 3]]), (n, 1)), 3, exact_below=0)
        assert graph.indices.shape == (n, min(3, n - 1))
        assert all(row not in graph.indices[row] for row in range(n))
        assert (graph.similarities > 0.999).all()


@given(n=st.integers(2, 20), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_a_part_of_the_graph_keeps_its_neighbors_and_marks_holes(n, seed):
    vectors = drawn(n, 3, seed, n // 3)
    graph = build_graph(vectors, 5)
    some = np.random.default_rng(seed).permutation(n)[: n // 2 + 1]
    for rows in (some, np.sort(some), np.arange(n)):
        check_part(graph, rows)


def check_part(graph, rows):
    part = graph.take(rows)
    for place, row in enumerate(rows):
        kept = {(int(other), float(s)) for other, s in zip(graph.indices[row], graph.similarities[row], strict=True)}
        kept = {(other, s) for other, s in kept if other in rows}
        neighbors = part.indices[place]
        found = {(int(rows[i]), float(s)) for i, s in zip(neighbors, part.similarities[place], strict=True) if i >= 0}
        assert found == kept
        assert (np.diff(neighbors < 0) >= 0).all() and (part.similarities[place][neighbors < 0] == -1).all()
    assert (part.horizon == graph.horizon[rows]).all()


@pytest.mark.parametrize("n", [0, 1, 2, 40])
def test_saved_graphs_come_back_whole(n, tmp_path):
    graph = build_graph(drawn(n, 6, 1) if n else np.zeros((0, 6), np.float32), 4)
    graph.save(tmp_path / "graph.safetensors")
    assert equal(graph, NeighborGraph.load(tmp_path / "graph.safetensors"))


def test_two_bytes_a_similarity(tmp_path):
    build_graph(drawn(2000, 6, 1), 10).save(tmp_path / "graph.safetensors")
    assert (tmp_path / "graph.safetensors").stat().st_size < 2000 * (10 * (4 + 2) + 4) + 1000


@pytest.mark.parametrize(
    "change",
    [
        {"indices": np.array([[1], [9]], np.int32)},  # a neighbor beyond the rows
        {"indices": np.array([[1], [-2]], np.int32)},
        {"horizon": np.zeros(3, np.int32)},  # another number of rows
        {"similarities": np.zeros((2, 2), np.int16)},
        {"extra": np.zeros(1)},
    ],
)
def test_a_file_that_is_no_graph_is_refused(change, tmp_path):
    sound = {
        "indices": np.array([[1], [0]], np.int32),
        "similarities": np.full((2, 1), STEPS, np.int16),
        "horizon": np.full(2, -2 * STEPS, np.int32),
    }
    save_file(sound, tmp_path / "sound.safetensors")
    assert NeighborGraph.load(tmp_path / "sound.safetensors").similarities.tolist() == [[1.0], [1.0]]
    save_file(sound | change, tmp_path / "graph.safetensors")
    with pytest.raises(ValueError, match="Build the graph again"):
        NeighborGraph.load(tmp_path / "graph.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"{}" * 100])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "graph.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="Build the graph again"):
        NeighborGraph.load(tmp_path / "graph.safetensors")


def test_top_k_is_exact_and_bounded():
    rows = unit([[1, 0], [1, 1], [0, 1]])
    similarities, indices = top_k(rows, rows[:1], 9)
    assert indices.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(similarities, [[1, 0.5**0.5, 0]], atol=1e-6)
    assert top_k(np.zeros((0, 2), np.float32), rows, 3)[1].shape == (3, 0)
    assert top_k(rows, np.zeros((0, 2), np.float32), 3)[1].shape == (0, 3)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused(kind, value):
    """Such a row would have a cosine of 0 or none to all others, and be the rarest of all."""
    vectors = drawn(200, 6, 0).astype(kind)
    vectors[-1, 3] = value
    for work in (lambda: build_graph(vectors, 4), lambda: keep_diverse(vectors, np.arange(200), 0.9)):
        with pytest.raises(ValueError, match="not finite"):
            work()
    vectors[-1, 3] = np.finfo(kind).max
    check_finite(vectors)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((1, 2)), 0, "k=0 neighbors"),
        (np.ones((1, 3)), 1, "3 dimensions and the embeddings 2"),
        (np.ones(2), 1, r"shape \(2,\)"),
    ],
)
def test_bad_arguments_are_named(queries, k, message):
    with pytest.raises(ValueError, match=message):
        top_k(np.ones((2, 2), np.float32), queries, k)
