"""Long-tail scores against scikit-learn's brute-force neighbors: same scores, both exact.

The baseline is `NearestNeighbors(algorithm="brute", metric="cosine")`, as in the published pipeline
(arXiv 2510.20449): 16 neighbors, the row itself left out, the mean distance of the other 15. Rows are embeddings of a
pool if the file is there (made on the first run and kept in the cache folder; the time of neither side includes them),
else, or with `--made-up`, random rows in groups.

    python benchmarks/long_tail.py
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from clustering import CACHE, POOL, made_up, pool_embeddings

from hf_lmmixup.neighbors import build_graph
from hf_lmmixup.selection import LONG_TAIL_NEIGHBORS, long_tail_scores


TARGET = 10
TOLERANCE = 1e-4


def baseline(embeddings: np.ndarray) -> np.ndarray:
    """Mean cosine distance to the nearest 15 others (n,)."""
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=LONG_TAIL_NEIGHBORS + 1, algorithm="brute", metric="cosine").fit(embeddings)
    distances, found = model.kneighbors(embeddings)
    own = found == np.arange(len(embeddings))[:, None]
    # A row that its duplicates crowded out is not among its own neighbors: the last one goes in its place.
    own[~own.any(axis=1), -1] = True
    scores: np.ndarray = distances[~own].reshape(len(embeddings), -1).mean(axis=1)
    return scores


def ours(embeddings: np.ndarray) -> np.ndarray:
    """The same by the exact graph, whatever the number of rows."""
    graph = build_graph(embeddings, LONG_TAIL_NEIGHBORS, exact_below=len(embeddings) + 1)
    return long_tail_scores(embeddings, graph=graph)


def main() -> None:
    """Time both in turn and compare the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--pool", type=Path, default=POOL, help="Parquet file with prompt and completion")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for embeddings")
    parser.add_argument("--made-up", action="store_true", help="random rows in groups instead of a pool")
    arguments = parser.parse_args()
    real = arguments.pool.exists() and not arguments.made_up
    if real:
        embeddings = pool_embeddings(arguments.pool, arguments.rows, arguments.cache)
    else:
        embeddings = made_up(arguments.rows)
    ratios = []
    for _ in range(arguments.runs):
        start = time.perf_counter()
        expected = baseline(embeddings)
        middle = time.perf_counter()
        found = ours(embeddings)
        end = time.perf_counter()
        ratios.append((middle - start) / (end - middle))
        print(f"{len(found)} rows: baseline {middle - start:.1f} s, ours {end - middle:.1f} s", flush=True)
    error = float(np.abs(found - expected).max())
    print(f"rows of {arguments.pool.name if real else 'made-up groups'}; largest difference of a score {error:.1e}")
    ratio = statistics.median(ratios)
    verdict = "ok" if ratio >= TARGET and error <= TOLERANCE else "short"
    spread = f"{min(ratios):.1f}-{max(ratios):.1f}"
    print(f"long_tail: ratio={ratio:.1f} target={TARGET} {verdict} (median of {len(ratios)}, spread {spread})")


if __name__ == "__main__":
    main()
