"""Clusters over the neighbor graph against k-means with greedy capacities, and how their time grows with the rows.

The baseline is what the published pipeline does (arXiv 2510.20449): MiniBatchKMeans with one center per cluster,
batches of 2,048, 30 iterations; centers scaled to length 1; rows sorted by their best similarity, each put into the
most similar center that is not full. It is given the very sizes of our clusters, so that both have the same mean size,
and our similarity floor is off, so that both put every row somewhere. Embeddings are made beforehand and kept in the
cache folder; the time of neither side includes them.

    python benchmarks/clustering.py                      # speed and cohesion on 8,000 real rows (baseline: minutes)
    python benchmarks/clustering.py --scale              # 20,000 to 300,000 made-up rows: time, peak memory, exponent
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_lmmixup.clustering import cluster
from hf_lmmixup.encoder import load_encoder
from hf_lmmixup.records import pair_text


POOL = Path(__file__).resolve().parents[1] / "../shared/data/t0_pool.parquet"
CACHE = Path.home() / ".cache" / "hf_lmmixup" / "benchmarks"
SPEED_TARGET, SECONDS_TARGET, MEMORY_TARGET, EXPONENT_TARGET = 100, 150, 4, 1.2
SIZES = (20_000, 50_000, 100_000, 300_000)
WIDTH = 384


def baseline(embeddings: np.ndarray, capacities: np.ndarray, seed: int) -> np.ndarray:
    """k-means with a center per capacity, then greedy assignment: cluster numbers (n,)."""
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(len(capacities), batch_size=2048, max_iter=30, n_init=1, random_state=seed)
    centers = kmeans.fit(embeddings).cluster_centers_
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    similarities = embeddings @ centers.T
    preferences = np.argsort(-similarities, axis=1)
    room = capacities.copy()
    labels = np.empty(len(embeddings), np.int64)
    for row in np.argsort(-similarities.max(axis=1)):
        for center in preferences[row]:
            if room[center]:
                room[center] -= 1
                labels[row] = center
                break
    return labels


def cohesion(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Mean cosine over all pairs of rows that share a cluster."""
    total, pairs = 0.0, 0
    order = np.argsort(labels, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        vectors = embeddings[rows]
        total += float(np.square(vectors.sum(0)).sum() - np.square(vectors).sum()) / 2
        pairs += len(rows) * (len(rows) - 1) // 2
    return total / pairs


def pool_embeddings(pool: Path, rows: int, cache: Path) -> np.ndarray:
    """The first rows of a pool as unit vectors, from the cache folder if they are there."""
    saved = cache / f"{pool.stem}-{rows}.npy"
    if not saved.exists():
        if not pool.exists():
            sys.exit(f"{pool} is missing. Name a Parquet file with the columns prompt and completion by --pool.")
        data = Dataset.from_parquet(str(pool)).select(range(rows))
        texts = [pair_text(*pair) for pair in zip(data["prompt"], data["completion"], strict=True)]
        cache.mkdir(parents=True, exist_ok=True)
        np.save(saved, load_encoder().encode(texts))
    return np.load(saved)


def made_up(n: int, seed: int = 0) -> np.ndarray:
    """Four fifths of the rows in groups of six on the mean (cosine 0.8), groups in topics (0.4); a fifth at random."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, WIDTH), dtype=np.float32)
    topics = rng.standard_normal((max(1, n // 300), WIDTH), dtype=np.float32)
    group_of = np.sort(rng.integers(0, n // 6, n * 4 // 5))
    topic_of = rng.integers(0, len(topics), n // 6)
    groups = 0.65 * rng.standard_normal((n // 6, WIDTH), dtype=np.float32) + 0.6 * topics[topic_of]
    for start in range(0, len(group_of), 65_536):
        chosen = group_of[start : start + 65_536]
        rows[start : start + len(chosen)] = 0.46 * rows[start : start + len(chosen)] + groups[chosen]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[rng.permutation(n)]


def ids(n: int) -> Dataset:
    """Rows that have nothing but an id."""
    return Dataset.from_dict({"id": [f"{row:016x}" for row in range(n)]})


def compare(arguments: argparse.Namespace) -> None:
    """Time both on the same rows, in turn."""
    embeddings = pool_embeddings(arguments.pool, arguments.rows, arguments.cache)
    rows = ids(len(embeddings))
    ours, theirs = [], []
    for _ in range(arguments.baseline_runs):
        for _ in range(arguments.runs):
            start = time.perf_counter()
            found = cluster(rows, embeddings, min_similarity=-1.0, seed=0).dataset
            ours.append(time.perf_counter() - start)
        labels = np.array(found["cluster_id"][:])[np.argsort(found["id"][:])]
        sizes = np.random.default_rng(0).permutation(np.bincount(labels))
        start = time.perf_counter()
        base_labels = baseline(embeddings, sizes, seed=0)
        theirs.append(time.perf_counter() - start)
    better = cohesion(embeddings, labels), cohesion(embeddings, base_labels)
    print(f"rows {len(embeddings)}, clusters {len(sizes)}, mean size {sizes.mean():.2f}")
    print(f"ours {statistics.median(ours):.2f} s, baseline {statistics.median(theirs):.1f} s")
    print(f"mean cosine of pairs in a cluster: ours {better[0]:.3f}, baseline {better[1]:.3f}")
    ratio = statistics.median(theirs) / statistics.median(ours)
    spread = f"{min(theirs) / max(ours):.0f}-{max(theirs) / min(ours):.0f}"
    verdict = "ok" if ratio >= SPEED_TARGET and better[0] >= better[1] else "short"
    print(f"clustering: ratio={ratio:.0f} target={SPEED_TARGET} {verdict} (median of {len(ours)}, spread {spread})")


def measure(path: Path) -> None:
    """Cluster the embeddings of one file, in a process of its own, and print time, peak memory and what was found."""
    import resource

    embeddings = np.load(path)
    rows = ids(len(embeddings))
    start, processor = time.perf_counter(), time.process_time()
    found = cluster(rows, embeddings).dataset["cluster_id"][:]
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    clustered = [number for number in found if number is not None]
    result = {"seconds": seconds, "processor": processor, "peak": peak / embeddings.nbytes}
    print(json.dumps(result | {"clusters": max(clustered) + 1, "clustered": len(clustered)}))


def scale(arguments: argparse.Namespace) -> None:
    """Time and memory at growing row counts, each in a process of its own."""
    runs: dict[int, list[dict[str, float]]] = {}
    for n in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "embeddings.npy"
            np.save(path, made_up(n))
            command = [sys.executable, __file__, "--measure", str(path)]
            for _ in range(arguments.scale_runs):
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                runs.setdefault(n, []).append(json.loads(output))
                print(f"rows {n}: " + ", ".join(f"{k} {v:.4g}" for k, v in runs[n][-1].items()), flush=True)
    seconds = [statistics.median(run["seconds"] for run in runs[n]) for n in arguments.sizes]
    exponent = float(np.polyfit(np.log(arguments.sizes), np.log(seconds), 1)[0]) if len(seconds) > 1 else 0.0
    peak = max(run["peak"] for run in runs[arguments.sizes[-1]])
    print(f"peak memory of the largest: {peak:.2f} x its embeddings (target under {MEMORY_TARGET})")
    print(f"exponent of time: {exponent:.2f} (target {EXPONENT_TARGET})")
    passed = seconds[-1] < SECONDS_TARGET and peak < MEMORY_TARGET and exponent <= EXPONENT_TARGET
    spread = "{:.0f}-{:.0f} s".format(*(f(run["seconds"] for run in runs[arguments.sizes[-1]]) for f in (min, max)))
    print(
        f"clustering_scale: ratio={SECONDS_TARGET / seconds[-1]:.2f} target=1 {'ok' if passed else 'short'} "
        f"(median of {arguments.scale_runs}, spread {spread})"
    )


def main() -> None:
    """Parse the command line and run one of the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, default=POOL, help="Parquet file with prompt and completion")
    parser.add_argument("--rows", type=int, default=8_000)
    parser.add_argument("--runs", type=int, default=5, help="our runs for each of the baseline's")
    parser.add_argument("--baseline-runs", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for embeddings")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--scale-runs", type=int, default=1)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
    elif arguments.scale:
        scale(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
