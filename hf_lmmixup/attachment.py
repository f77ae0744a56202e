"""New rows into clusters that exist: an earlier clustering goes on with the rows that came since.

Every row of the earlier clusters stays where it was. A new row joins the cluster of its nearest clustered neighbor if
there is room and the row is similar enough to every member; rows that find none form clusters of their own. So a
cluster that no new row joined has the members it had, and what was distilled from it stays good.

    earlier {"a": 0, "b": 0}, new rows c (like a and b) and d, e (like each other)  ->  {a, b, c}, {d, e}
"""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset

from hf_lmmixup.bounds import CLUSTER, check
from hf_lmmixup.clustering import (
    MIN_SIMILARITY,
    NEIGHBORS,
    Sizes,
    check_rows,
    group,
    number_clusters,
    related_rows,
    route_rows,
)
from hf_lmmixup.neighbors import NeighborGraph, build_graph
from hf_lmmixup.records import Outcome


def attach(
    dataset: Dataset,
    embeddings: np.ndarray,
    earlier: Mapping[str, int],
    *,
    min_size: int = 2,
    max_size: int = 5,
    mean_size: float = 3.0,
    std_size: float = 1.0,
    min_similarity: float = MIN_SIMILARITY,
    seed: int = 0,
    graph: NeighborGraph | None = None,
    singletons: str = "keep",
) -> Outcome:
    """Cluster rows of which some are clustered already.

    Args:
        dataset: Rows with distinct `id`s, old and new.
        embeddings: Their unit vectors (n, d), in the same order.
        earlier: Row id -> cluster number of an earlier clustering. Ids that are not among the rows are left out; what
            is then smaller than `min_size` is dissolved.
        min_size: Fewest members of a cluster.
        max_size: Most members of a cluster.
        mean_size: Mean of the wanted sizes of new clusters.
        std_size: Their standard deviation.
        min_similarity: Smallest cosine between a row that joins and each member of its cluster.
        seed: Seed of the wanted sizes.
        graph: The rows' neighbor graph, if it is at hand.
        singletons: What happens to a row without a cluster; see `clustering.cluster`.

    Returns:
        The same as `clustering.cluster`: numbers follow the smallest id, so they may differ from the earlier ones.

    Raises:
        ValueError: If an argument is out of range, ids repeat, or embeddings and rows do not match.
    """
    check(CLUSTER, {"singletons": singletons, "min_similarity": min_similarity})
    sizes = Sizes(min_size, max_size, mean_size, std_size)
    ids = dataset["id"][:]
    check_rows(ids, embeddings, graph)
    canonical = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    sorted_ids = [ids[row] for row in canonical]
    vectors = embeddings[canonical]
    graph = build_graph(vectors, NEIGHBORS) if graph is None else graph.take(canonical)
    labels = _surviving(sorted_ids, earlier, min_size)
    _join(labels, vectors, graph, max_size, min_similarity)
    free = np.flatnonzero(labels < 0)
    wanted = sizes.capacities([sorted_ids[row] for row in free], seed)
    new = group(vectors[free], wanted, sizes, min_similarity=min_similarity)
    labels[free[new >= 0]] = len(ids) + new[new >= 0]
    return route_rows(dataset, canonical, sorted_ids, number_clusters(labels), singletons)


def _surviving(ids: list[str], earlier: Mapping[str, int], min_size: int) -> np.ndarray:
    """Earlier cluster of each row (n,), numbered anew without gaps; -1 for rows without one."""
    known = np.array([earlier.get(identifier, -1) for identifier in ids], np.int64)
    names, labels, counts = np.unique(known, return_inverse=True, return_counts=True)
    gone = (names < 0) | (counts < min_size)
    return np.where(gone[labels], -1, labels)


def _join(labels: np.ndarray, vectors: np.ndarray, graph: NeighborGraph, max_size: int, min_similarity: float) -> None:
    """Let rows without a cluster join one, in place; the row with the closest clustered neighbor chooses first."""
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(labels >= 0).tolist():
        members.setdefault(int(labels[row]), []).append(row)
    related = related_rows(graph, min_similarity)
    free = np.flatnonzero(labels < 0)
    clustered = related[free] & (labels[graph.indices[free]] >= 0)
    closest = np.where(clustered, graph.similarities[free], -2.0).max(axis=1, initial=-2.0)
    # A row that has joined attracts no further ones: which rows come with it must not decide where a row goes.
    offers = labels.copy()
    for place in np.argsort(-closest, kind="stable").tolist():
        row = int(free[place])
        near = graph.indices[row][clustered[place]]
        for cluster in dict.fromkeys(offers[near].tolist()):
            inside = members[cluster]
            cosines = vectors[inside].astype(np.float32) @ vectors[row].astype(np.float32)
            if len(inside) < max_size and cosines.min() >= min_similarity:
                labels[row] = cluster
                inside.append(row)
                break
