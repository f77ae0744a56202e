"""Related low-scored rows to size-bounded clusters, over the neighbor graph.

Every row draws a capacity, the size of the cluster that it would start. The rows with the closest neighbors start
first and take the nearest free rows until their capacity is met. Rows that found too few free neighbors try again
in a graph of the free rows alone; what is left joins a cluster with room, and the rest is routed as the caller says.
Nearly equal rows that are more than a graph is wide, whose lists all name the same few of them, are cut into clusters
as they stand. No step compares all rows with all clusters, and none runs for ever: each round leaves fewer rows free
or is the last.

The published code draws capacities that must sum to the row count, which has no solution for some counts, and fills
them from k-means centers without a similarity floor (arXiv 2510.20449, code). Here the sizes follow the same clipped
normal distribution, as far as the data has enough related rows.

One row after clustering::

    {"id": "5f1d0c8f1f0b7a52", "prompt": "why sky blue", ..., "score": 1, "cluster_id": 7}
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_lmmixup.bounds import CLUSTER, check, check_sizes
from hf_lmmixup.half_precision import check_finite
from hf_lmmixup.neighbors import NeighborGraph, build_graph
from hf_lmmixup.records import Outcome, row_seed
from hf_lmmixup.tables import check_ids, rows_at, with_columns


NEIGHBORS = 15
"""Least width of the graph: enough for three clusters of the largest default size around a row."""

MIN_SIMILARITY = 0.5
"""Smallest cosine between the row that starts a cluster and a member. Under MiniLM, random pairs of a pool of T0 tasks
have a median cosine of 0.07, and 99 % of them one below 0.53."""

BLOCK = 16_384
"""Rows whose neighbors are unpacked at a time; Python lists of the whole graph would take ten times its memory."""

DENSITY_NEIGHBORS = 4
"""Neighbors whose similarity says how dense a row's surroundings are: the other members of a cluster of five."""

NO_CLUSTER = "cluster: no related rows"
"""Reason of a dropped singleton."""

CROWD = 0.999
"""A row whose last listed neighbor is so similar stands in a crowd, of which its list may not name all rows."""

STALLED = 0.9
"""A round that leaves more than this share of its rows free is the last; it settles for clusters below capacity."""


@dataclass(frozen=True)
class Sizes:
    """The wanted sizes of clusters: a normal distribution, rounded and clipped.

    Raises:
        ValueError: If the bounds are not ordered, the mean lies outside of them, or the deviation is negative.
    """

    min_size: int
    max_size: int
    mean_size: float
    std_size: float

    def __post_init__(self) -> None:
        check_sizes(self.min_size, self.max_size, self.mean_size)
        check(CLUSTER, {"std_size": self.std_size})

    def capacities(self, ids: list[str], seed: int) -> np.ndarray:
        """One capacity per row (n,), drawn from the seed and the row's id alone, so that no other row can move it."""
        if self.std_size == 0:
            return np.full(len(ids), round(self.mean_size), np.int64)
        normal = NormalDist(self.mean_size, self.std_size)
        edges = np.array([normal.cdf(size + 0.5) for size in range(self.min_size, self.max_size)])
        uniform = np.array([row_seed(seed, identifier) for identifier in ids], dtype=np.float64) / 2**63
        return self.min_size + np.searchsorted(edges, uniform)


def cluster(
    dataset: Dataset,
    embeddings: np.ndarray,
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
    """Group related rows.

    Args:
        dataset: Rows with distinct `id`s.
        embeddings: Their unit vectors (n, d), in the same order.
        min_size: Fewest members of a cluster.
        max_size: Most members of a cluster.
        mean_size: Mean of the wanted sizes.
        std_size: Their standard deviation; they are rounded and clipped to the bounds.
        min_similarity: Smallest cosine between the row that starts a cluster and a member; it belongs to the encoder.
        seed: Seed of the wanted sizes.
        graph: The rows' neighbor graph, if it is at hand, best built in order of id: in it equally similar neighbors
            stand by row number, and where there are more of them than it is wide, the first ones are listed. One that
            is narrower than `max_size - 1` is not used.
        singletons: What happens to a row without a cluster: `keep` passes it on with `cluster_id` None, `edit` makes
            it a cluster of one, `drop` drops it.

    Returns:
        The rows with the column `cluster_id`, by cluster and id, singletons without a cluster last. Clusters are
        numbered by their smallest id. The order of the input rows has no influence, but by way of a given graph.

    Raises:
        ValueError: If an argument is out of range, ids repeat, or embeddings and rows do not match.
    """
    check(CLUSTER, {"singletons": singletons, "min_similarity": min_similarity})
    sizes = Sizes(min_size, max_size, mean_size, std_size)
    ids = dataset["id"][:]
    check_rows(ids, embeddings, graph)
    canonical = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    sorted_ids = [ids[row] for row in canonical]
    labels = group(
        embeddings if (canonical[1:] > canonical[:-1]).all() else embeddings[canonical],
        sizes.capacities(sorted_ids, seed),
        sizes,
        min_similarity=min_similarity,
        graph=None if graph is None else graph.take(canonical),
    )
    return route_rows(dataset, canonical, sorted_ids, labels, singletons)


def group(
    embeddings: np.ndarray,
    capacities: np.ndarray,
    sizes: Sizes,
    *,
    min_similarity: float = MIN_SIMILARITY,
    graph: NeighborGraph | None = None,
) -> np.ndarray:
    """Cluster numbers (n,) of rows in canonical order; -1 where a row belongs to no cluster.

    Args:
        embeddings: Unit rows (n, d) float32.
        capacities: Wanted size of the cluster that each row would start (n,).
        sizes: Bounds of the sizes.
        min_similarity: Smallest cosine between the first row of a cluster and a member.
        graph: Neighbor graph of the rows; one that is narrower than `max_size - 1` is not used.

    Returns:
        Numbers from 0 without gaps, in the order of the smallest row of each cluster.
    """
    width = max(NEIGHBORS, sizes.max_size - 1)
    if graph is not None and graph.indices.shape[1] < min(sizes.max_size, len(embeddings)) - 1:
        graph = None  # it names too few rows for the largest cluster
    is_own = graph is None  # one that was cut out of a larger graph has holes, and says little of what is left
    graph = build_graph(embeddings, width) if graph is None else graph
    starters = np.full(len(embeddings), -1, np.int64)
    free = np.arange(len(embeddings))
    view = graph
    while len(free) >= sizes.min_size:
        found = _grow(view, capacities[free], capacities[free], min_similarity)
        stalled = is_own and (found < 0).mean() > STALLED
        if stalled:
            found = _grow(view, capacities[free], np.full(len(free), sizes.min_size), min_similarity)
        starters[free[found >= 0]] = free[found[found >= 0]]
        if stalled:
            break
        # A row without a related free row, listed or beyond its list, has no cluster to start or to wait for.
        may_wait = related_rows(view, min_similarity).any(1) | (view.horizon >= min_similarity)
        free = free[(found < 0) & may_wait]
        view, is_own = build_graph(embeddings[free], width), True
    if sizes.min_size == 1:
        starters = np.where(starters < 0, np.arange(len(starters)), starters)
    _join(graph, embeddings, starters, sizes.max_size, min_similarity)
    return number_clusters(starters)


def _grow(graph: NeighborGraph, capacities: np.ndarray, fewest: np.ndarray, min_similarity: float) -> np.ndarray:
    """One round: the row that started each row's cluster (n,), -1 for rows that stay free.

    The densest rows start first; a row starts a cluster if it and its free related rows are at least `fewest`.
    """
    # Rounded, because the last bits of a cosine depend on where in a matrix its row stood.
    density = np.round(graph.similarities[:, :DENSITY_NEIGHBORS].sum(1, dtype=np.float64), 4)
    reach = related_rows(graph, min_similarity).sum(1)
    order = np.argsort(-density, kind="stable")
    starters = [-1] * len(order)
    for begin in range(0, len(order), BLOCK):
        rows = order[begin : begin + BLOCK]
        columns = (rows, graph.indices[rows], reach[rows], capacities[rows], fewest[rows])
        for row, neighbors, related, capacity, least in zip(*(column.tolist() for column in columns), strict=True):
            if starters[row] >= 0:
                continue
            members = [other for other in neighbors[:related] if starters[other] < 0][: capacity - 1]
            if len(members) + 1 >= least:
                starters[row] = row
                for member in members:
                    starters[member] = row
    found = np.array(starters, np.int64)
    _cut_crowds(graph, found, capacities, fewest, min_similarity)
    return found


def _cut_crowds(
    graph: NeighborGraph, starters: np.ndarray, capacities: np.ndarray, fewest: np.ndarray, min_similarity: float
) -> None:
    """Cut crowds of free rows into clusters, in place, in order of their rows; each is named by its first listed row.

    Two unit rows with cosines of at least c to a third one have one of at least `2 c^2 - 1` to each other.
    """
    nearness = max(CROWD, ((1 + min_similarity) / 2) ** 0.5)
    free = np.flatnonzero((starters < 0) & (graph.horizon >= nearness))
    listed = np.where(graph.indices[free] < 0, len(graph), graph.indices[free])
    names = np.minimum(free, listed.min(axis=1, initial=len(graph)))
    order = np.argsort(names, kind="stable")
    for crowd in np.split(free[order], np.flatnonzero(np.diff(names[order])) + 1):
        begin = 0
        while begin < len(crowd) and len(crowd) - begin >= fewest[crowd[begin]]:
            starter = crowd[begin]
            starters[crowd[begin : begin + capacities[starter]]] = starter
            begin += capacities[starter]


def _join(
    graph: NeighborGraph, embeddings: np.ndarray, starters: np.ndarray, max_size: int, min_similarity: float
) -> None:
    """Let free rows join, in place, the nearest cluster that has room and whose starter is related."""
    members = np.bincount(starters[starters >= 0], minlength=len(starters))
    related = related_rows(graph, min_similarity)
    for row in np.flatnonzero(starters < 0).tolist():
        nearest = graph.indices[row][related[row]]
        for start in dict.fromkeys(starters[nearest].tolist()):
            if start >= 0 and members[start] < max_size and similarity(embeddings, row, start) >= min_similarity:
                starters[row] = start
                members[start] += 1
                break


def number_clusters(starters: np.ndarray) -> np.ndarray:
    """Clusters named by their starter -> clusters numbered by their smallest row, without gaps; -1 stays."""
    labels = np.full(len(starters), -1, np.int64)
    rows = np.flatnonzero(starters >= 0)
    _, smallest, inverse = np.unique(starters[rows], return_index=True, return_inverse=True)
    rank = np.empty(len(smallest), np.int64)
    rank[np.argsort(smallest)] = np.arange(len(smallest))
    labels[rows] = rank[inverse]
    return labels


def related_rows(graph: NeighborGraph, min_similarity: float) -> np.ndarray:
    """Which neighbors (n, k) are similar enough; holes are not."""
    related: np.ndarray = (graph.similarities >= min_similarity) & (graph.indices >= 0)
    return related


def similarity(embeddings: np.ndarray, row: int, other: int) -> float:
    """Cosine of two unit rows, summed in single precision whatever they are stored in."""
    return float(np.dot(embeddings[row].astype(np.float32), embeddings[other].astype(np.float32)))


def check_rows(ids: list[str], embeddings: np.ndarray, graph: NeighborGraph | None) -> None:
    """Refuse rows, embeddings and a graph that do not belong together.

    Raises:
        ValueError: If they do not.
    """
    if np.ndim(embeddings) != 2 or len(embeddings) != len(ids):
        raise ValueError(f"{len(ids)} rows need embeddings ({len(ids)}, d), not {np.shape(embeddings)}.")
    check_finite(embeddings)
    if graph is not None and len(graph.indices) != len(ids):
        raise ValueError(f"The graph has {len(graph.indices)} rows and the dataset {len(ids)}. Build it anew.")
    check_ids(pa.array(ids, pa.string()))


def route_rows(
    dataset: Dataset, canonical: np.ndarray, sorted_ids: list[str], labels: np.ndarray, singletons: str
) -> Outcome:
    """Attach the cluster numbers (n,), given in canonical order, and send rows without a cluster where they belong."""
    lone = labels < 0
    if singletons == "edit":
        # Numbers follow the smallest id, so the new clusters of one shift the others.
        labels = number_clusters(np.where(lone, np.arange(len(labels)), len(labels) + labels))
        lone = np.zeros(len(labels), bool)
    numbers = np.empty(len(labels), np.int64)
    numbers[canonical] = labels
    clustered = with_columns(dataset, {"cluster_id": pa.array(numbers, mask=numbers < 0)})
    order = np.argsort(np.where(lone, len(labels), labels), kind="stable")
    dropped = {}
    if singletons == "drop":
        order = order[: len(order) - lone.sum()]
        dropped = {sorted_ids[row]: NO_CLUSTER for row in np.flatnonzero(lone)}
    return Outcome(rows_at(clustered, canonical[order]), dropped)
