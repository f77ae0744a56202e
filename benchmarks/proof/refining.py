r"""From a raw pool to distilled rows, by the package's own stages.

    embed -> rate by a datastore -> split by score -> cluster the low half -> distill -> rate again -> select

The same job runs three times: with the trained distiller, with rows grouped at random (control) and with a distiller
that was never trained (control). Clusters are what `hf_lmmixup.clustering` finds; the truth is used to report how pure
they are and for nothing else.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from benchmarks.proof.noise import row_text
from benchmarks.proof.world import Character, read_facts
from benchmarks.proof.writer import Writer
from hf_lmmixup.clustering import cluster
from hf_lmmixup.datastore import ScoredDatastore, build
from hf_lmmixup.distillation import distill
from hf_lmmixup.encoder import Encoder
from hf_lmmixup.rating import rate_with_datastore, split_by_score
from hf_lmmixup.records import HIGH_SCORE, TaskType, pair_text
from hf_lmmixup.selection import select


CLUSTERS: dict[str, Any] = {
    "min_size": 4,
    "max_size": 10,
    "mean_size": 8.0,
    "std_size": 1.0,
    "min_similarity": 0.7,
    "singletons": "keep",
}
"""About as many members as a character has low rows; the floor belongs to MiniLM and texts that ask alike."""


def build_datastore(rows: Sequence[dict[str, Any]], encoder: Encoder, folder: Path) -> Path:
    """A datastore of scored rows about characters that no student is asked about; rows of one stand together."""
    ordered = sorted(rows, key=lambda row: (row["code_point"], row["id"]))
    texts, scores = [row_text(row) for row in ordered], [row["score"] for row in ordered]
    return build(texts, scores, [TaskType.QA.value] * len(ordered), encoder).save(folder)


@dataclass
class Pool:
    """A rated raw pool.

    Attributes:
        rated: All rows, with the score that the datastore gives them.
        embeddings: Their unit vectors (n, d).
        high: The rows that are good enough to keep.
        clustered: The others, with `cluster_id`.
        facts: What the report says about rating and clusters.
    """

    rated: Dataset
    embeddings: np.ndarray
    high: Dataset
    clustered: Dataset
    facts: dict[str, Any]


def rate_and_cluster(rows: Sequence[dict[str, Any]], encoder: Encoder, datastore: ScoredDatastore, seed: int) -> Pool:
    """Rate the pool, keep the high rows and cluster the others."""
    columns = ("id", "prompt", "completion", "source")
    raw = Dataset.from_list([{name: row[name] for name in columns} for row in rows])
    embeddings = encoder.encode([row_text(row) for row in rows])
    rated = rate_with_datastore(raw, datastore, encoder).dataset
    high, low, unrated = split_by_score(rated)
    place = {identifier: number for number, identifier in enumerate(rated["id"][:])}
    found = cluster(low, embeddings[[place[name] for name in low["id"][:]]], seed=seed, **CLUSTERS)
    facts: dict[str, Any] = {"rows": len(rated), "high": len(high), "low": len(low), "unrated": len(unrated)}
    facts |= cluster_facts(found.dataset, {row["id"]: row["code_point"] for row in rows})
    true = np.array([row["score"] for row in rows])
    given = np.array([-1 if score is None else score for score in rated["score"][:]])
    facts["high_precision"] = float((true[given >= HIGH_SCORE] >= HIGH_SCORE).mean()) if len(high) else None
    return Pool(rated, embeddings, high, found.dataset, facts)


def cluster_facts(clustered: Dataset, code_points: Mapping[str, int]) -> dict[str, Any]:
    """Number and purity of the clusters: the share of rows that belong to their cluster's commonest character."""
    groups: dict[int, list[int]] = defaultdict(list)
    for identifier, number in zip(clustered["id"][:], clustered["cluster_id"][:], strict=True):
        if number is not None:
            groups[number].append(code_points[identifier])
    counts = [Counter(group).most_common(1)[0] for group in groups.values()]
    rows = sum(map(len, groups.values()))
    return {
        "clusters": len(groups),
        "without_cluster": len(clustered) - rows,
        "purity": sum(count for _, count in counts) / max(1, rows),
        "characters_with_cluster": len({code_point for code_point, _ in counts}),
    }


def shuffled(clustered: Dataset, seed: int) -> Dataset:
    """The same rows and cluster sizes with the rows dealt out at random."""
    numbers = np.random.default_rng(seed).permutation(len(clustered))
    dealt = [clustered["cluster_id"][int(number)] for number in numbers]
    return clustered.remove_columns("cluster_id").add_column(
        "cluster_id", dealt, feature=clustered.features["cluster_id"]
    )


@dataclass
class Refined:
    """Distilled rows before and after selection, and what became of the others."""

    distilled: Dataset
    selected: Dataset
    facts: dict[str, Any]


def refine(
    clustered: Dataset,
    model: Path,
    encoder: Encoder,
    datastore: ScoredDatastore,
    truth: Sequence[Character],
    seed: int,
) -> Refined:
    """Distill clusters, rate the result and select from it."""
    generator = Writer(model)
    outcome = distill(
        clustered,
        generator.generate,
        distiller_name=model.name,
        max_prompt_tokens=generator.max_prompt_tokens,
        count_tokens=generator.count_tokens,
        seed=seed,
        attempts=1,
    )
    distilled = outcome.dataset
    facts: dict[str, Any] = {
        "distilled": len(distilled),
        "sources": sum(map(len, distilled["sources"][:])),
        "dropped": dict(Counter(outcome.dropped.values())),
    }
    if not len(distilled):
        return Refined(distilled, distilled, facts | {"selected": 0, "fact_accuracy": 0.0, "facts_stated": 0.0})
    rated = rate_with_datastore(distilled, datastore, encoder).dataset
    texts = [pair_text(row["prompt"], row["completion"]) for row in rated]
    chosen = select(rated, min_score=HIGH_SCORE, embeddings=encoder.encode(texts)).dataset
    facts |= {"selected": len(chosen), **fact_accuracy(distilled, truth)}
    return Refined(distilled, chosen, facts)


def fact_accuracy(rows: Dataset, truth: Sequence[Character]) -> dict[str, float]:
    """How many of the facts that rows state are right, and how many of all facts some row states rightly.

    A row is about the character whose name its prompt holds; the facts of a row about none count as wrong.
    """
    right, stated, known = 0, 0, set()
    names = sorted(((one.name, one) for one in truth), key=lambda pair: -len(pair[0]))
    for row in rows:
        subject = next((one for name, one in names if name in row["prompt"].lower()), None)
        for base, value in dict(read_facts(row["completion"])).items():
            stated += 1
            if subject is not None and subject.facts[base] == value:
                right += 1
                known.add((subject.code_point, base))
    total = sum(len(one.facts) for one in truth)
    return {"fact_accuracy": right / max(1, stated), "facts_stated": len(known) / max(1, total)}
