r"""The hand-written mini MIXTURE that ships inside the package: clusters of weak texts with one excellent text each.

One cluster::

    {"topic": "tides", "field": "earth science", "task_type": "qa", "score": 5, "target": "Q: ...\nA: ...",
     "reasoning": "...", "weak": [{"text": "Q: tides?\nA: the Moon", "score": 1, "flaw": "vague"}, ...]}

`read_mini` gives the files as they were written: two or three careless variants a cluster. `mini_clusters` adds seeded
corruptions of the target, so that clusters hold 2 to 8 weak texts, and the split: a fifth of the topics is held out,
the same ones for all task types. A corruption that the quality judge did not find weaker than its target is drawn
again; `redrawn` names these, and `dataset_scripts/mixture.py check` finds them.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Set
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from hf_lmmixup.corruption import corrupt, names, weak_score
from hf_lmmixup.records import TaskType, row_id, row_seed


FOLDER = "data/mini_mixture"

HELD_OUT = 5
"""One topic in five belongs to the test split."""

SIZES = (2, 3, 3, 3, 4, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 7, 8)
"""Weak texts of a cluster, drawn with these weights; never fewer than were written by hand."""

DRAWS = 4 * max(SIZES)
"""Corruptions tried for a cluster before it stays smaller than drawn."""

REDRAWS = 20
"""How often one corruption is drawn again before the next one has its turn."""

REDRAWN = "redrawn.json"


def pool_file() -> Path:
    """The raw rows of the quickstart, as JSON lines."""
    return Path(str(resources.files("hf_lmmixup").joinpath("data/pool.jsonl")))


@cache
def _lines(task_type: str) -> tuple[str, ...]:
    file = resources.files("hf_lmmixup").joinpath(FOLDER, f"{task_type}.jsonl")
    if not file.is_file():
        return ()
    return tuple(line for line in file.read_text(encoding="utf-8").splitlines() if line.strip())


def read_mini(task_type: TaskType | str | None = None) -> list[dict[str, Any]]:
    """The clusters of the mini MIXTURE, in file order.

    Args:
        task_type: Only this kind; `None` reads all five, in the order of `TaskType`.

    Returns:
        One dictionary a cluster, fresh on every call.
    """
    kinds = list(TaskType) if task_type is None else [TaskType(task_type)]
    return [json.loads(line) for kind in kinds for line in _lines(kind.value)]


class RatedText(NamedTuple):
    """One text of the mini MIXTURE with its score: a row of the bundled datastore."""

    text: str
    score: int
    task_type: str
    topic: str
    split: str


def held_out_topics() -> frozenset[str]:
    """The topics of the test split: the first fifth of all topics in the order of their SHA-256."""
    topics = sorted(
        {cluster["topic"] for cluster in read_mini()}, key=lambda t: hashlib.sha256(t.encode()).hexdigest()
    )
    return frozenset(topics[: len(topics) // HELD_OUT])


def mini_clusters(task_type: TaskType | str | None = None, split: str | None = None) -> list[dict[str, Any]]:
    """The clusters of the mini MIXTURE with their corrupted variants and their split.

    Args:
        task_type: Only this kind; `None` gives all five, in the order of `TaskType`.
        split: `train` or `test`; `None` gives both, in file order.

    Returns:
        Fresh dictionaries: what `read_mini` returns, with `id` and `split` added, and with 2 to 8 entries in `weak`:
        first the hand-written ones, then corruptions of the target, whose `flaw` is the name of the corruption.

    Raises:
        ValueError: If `split` is none of those.
    """
    if split not in (None, "train", "test"):
        raise ValueError(f"Unknown split {split!r} of the mini MIXTURE. Expected 'train', 'test' or None for both.")
    kinds = list(TaskType) if task_type is None else [TaskType(task_type)]
    return [
        {**cluster, "weak": [dict(weak) for weak in cluster["weak"]]}
        for cluster in _completed()
        if cluster["task_type"] in kinds and split in (None, cluster["split"])
    ]


def mixture_clusters(split: str | None = None) -> list[dict[str, Any]]:
    """The clusters in the order and with the keys of MIXTURE rows.

    Task types take turns, so that the first rows hold all of them, and weak texts are shuffled, so that their order
    says nothing about where they come from.

    Args:
        split: `train` or `test`; `None` gives both.

    Returns:
        What `mini_clusters` returns, with `sources` (the weak texts) and `source` added.
    """
    rows = []
    for cluster in mini_clusters(split=split):
        texts = sorted((weak["text"] for weak in cluster["weak"]), key=lambda text: row_id(cluster["id"], text))
        rows.append({**cluster, "sources": texts, "source": "mini"})
    by_type = [[row for row in rows if row["task_type"] == kind] for kind in TaskType]
    return [row for turn in zip(*by_type, strict=True) for row in turn]


def rated_texts(split: str | None = "train", clusters: Iterable[dict[str, Any]] | None = None) -> list[RatedText]:
    """Every distinct text of the mini MIXTURE with its score: targets, hand-written and corrupted variants.

    Args:
        split: Only the texts of this split, so that held-out topics stay unseen; `None` gives all.
        clusters: What `complete_clusters` made; by default the clusters of the package.

    Returns:
        The rows from which the bundled datastore is built, cluster by cluster, target first.
    """
    known = mini_clusters(split=split) if clusters is None else clusters
    rows: dict[tuple[str, str], RatedText] = {}
    for cluster in (cluster for cluster in known if split in (None, cluster["split"])):
        for text, score in [
            (cluster["target"], cluster["score"]),
            *((w["text"], w["score"]) for w in cluster["weak"]),
        ]:
            row = RatedText(text, score, cluster["task_type"], cluster["topic"], cluster["split"])
            rows.setdefault((row.task_type, text), row)
    return list(rows.values())


@cache
def redrawn() -> frozenset[str]:
    """The corrupted variants that were drawn again: the `row_id` of cluster id and text of each."""
    return frozenset(json.loads(resources.files("hf_lmmixup").joinpath(FOLDER, REDRAWN).read_text(encoding="utf-8")))


def complete_clusters(rejected: Set[str]) -> list[dict[str, Any]]:
    """All clusters with id, split and corrupted variants, fresh on every call.

    Args:
        rejected: The variants to draw again, in the form of `redrawn`.
    """
    held_out = held_out_topics()
    completed: list[dict[str, Any]] = []
    for kind in TaskType:
        clusters = read_mini(kind)
        for cluster in clusters:
            cluster["id"] = row_id(kind.value, cluster["target"])
            cluster["split"] = "test" if cluster["topic"] in held_out else "train"
        targets = {part: [c["target"] for c in clusters if c["split"] == part] for part in ("train", "test")}
        for cluster in clusters:
            cluster["weak"] += _spoilt(cluster, targets[cluster["split"]], rejected)
        completed += clusters
    return completed


@cache
def _completed() -> tuple[dict[str, Any], ...]:
    """The clusters of the package; not to be changed by callers."""
    return tuple(complete_clusters(redrawn()))


def _spoilt(cluster: dict[str, Any], targets: list[str], rejected: Set[str]) -> list[dict[str, Any]]:
    """Corrupted variants of a cluster's target, as many as its drawn size still needs."""
    rng = random.Random(row_seed(0, cluster["id"]))
    size = SIZES[int(rng.random() * len(SIZES))]
    order = sorted(names(), key=lambda name: row_seed(1, cluster["id"] + name))
    strangers = [target for target in targets if target != cluster["target"]]
    taken = {cluster["target"], *(weak["text"] for weak in cluster["weak"])}
    spoilt: list[dict[str, Any]] = []
    for attempt in range(DRAWS):
        if len(cluster["weak"]) + len(spoilt) >= size:
            break
        name = order[attempt % len(order)]
        text = _drawn(cluster, name, attempt, strangers, rejected)
        if text is not None and text not in taken:
            taken.add(text)
            spoilt.append({"text": text, "score": weak_score(cluster["score"], name), "flaw": name})
    return spoilt


def _drawn(cluster: dict[str, Any], name: str, attempt: int, strangers: list[str], rejected: Set[str]) -> str | None:
    """One corruption of the target by the first seed whose text was not rejected; None if `REDRAWS` were in vain."""
    for again in range(1 + REDRAWS):
        seed = row_seed(2 + attempt + DRAWS * again, cluster["id"])
        other = {"other": strangers[seed % len(strangers)]} if name == "cross-topic merging" else {}
        text = corrupt(cluster["target"], name, seed=seed, **other)
        if row_id(cluster["id"], text) not in rejected:
            return text
    return None
