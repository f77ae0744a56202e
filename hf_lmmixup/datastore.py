r"""Scored texts as a memory: embeddings, scores, how scores neighbor each other, and a head learned from them.

A new text is judged by its neighbors here (arXiv 2510.20449, quality reward) or, where that predicts the datastore's
own held-out scores better, by a small linear head (docs/quality.md). On disk a datastore is a folder of two files,
`datastore.safetensors` and `datastore.json`; nothing else in the folder is opened and nothing is unpickled.

One row::

    embedding (384,) of "Q: Why do tides...\nA: ..."    score 5    task type "qa"
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from hf_lmmixup.datastore_files import local_folder, read_datastore, write_datastore
from hf_lmmixup.encoder import Encoder
from hf_lmmixup.features import text_features, word_buckets
from hf_lmmixup.neighbors import build_graph, top_k
from hf_lmmixup.quality_report import compare_judges, distance_floor, learnable_rows
from hf_lmmixup.records import SCORES, TaskType
from hf_lmmixup.score_head import Design, ScoreHead, fit_head, head_shapes
from hf_lmmixup.transition import ScoreTransition, estimate, expected_score, neighbor_counts, posterior


K_TRANSITION = 3
"""Neighbors that are counted into the transition matrix (arXiv 2510.20449, code)."""
K_POSTERIOR = 16
"""Neighbors that judge a new text (arXiv 2510.20449, code)."""


@dataclass(frozen=True, eq=False, repr=False)
class ScoredDatastore:
    """Scored texts of several task types.

    Attributes:
        design: What is known of each row: counts, hashed words, embedding (n, d), task type.
        scores: Score of each row (n,) int64.
        transitions: Task type -> how its scores neighbor each other.
        encoder: Name of the encoder that made the embeddings.
        encoder_revision: Its revision, if it has one.
        k_transition: Neighbors counted into the transitions.
        head: The linear judge, if there were enough rows to measure one.
        report: How well neighbors and head predict held-out rows, and which of them is the `default`.
        floor: Cosine to the closest row below which a text is too far away to be judged.
    """

    design: Design
    scores: np.ndarray
    transitions: dict[str, ScoreTransition]
    encoder: str
    encoder_revision: str | None
    k_transition: int
    head: ScoreHead | None
    report: dict[str, Any]
    floor: float

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"ScoredDatastore({len(self):,} texts, encoder {self.encoder!r}, judge {self.report['default']!r})"

    @property
    def embeddings(self) -> np.ndarray:
        """Unit rows (n, d) float32."""
        return self.design.embeddings

    @cached_property
    def _rows(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        places = {name: np.flatnonzero(self.design.kinds == name) for name in self.transitions}
        return {name: (self.embeddings[rows], self.scores[rows]) for name, rows in places.items()}

    def judge(
        self, texts: Sequence[str], encoder: Encoder, task_type: TaskType | str, *, judge: str | None = None
    ) -> np.ndarray:
        """The expected score of new texts by the better judge of this datastore.

        Args:
            texts: Texts with their labels, as `records.pair_text` writes pairs.
            encoder: The datastore's encoder.
            task_type: What kind of text they are.
            judge: `head` or `neighbors` instead of the default.

        Returns:
            Expected scores (m,) in [0, 5]; NaN where the closest row is too far away.

        Raises:
            ValueError: If the encoder is another one, there are no rows of the task type, or the judge is unknown.
        """
        self._check_encoder(encoder)
        embeddings = encoder.encode(texts)
        expected = self.judge_embedded(texts, embeddings, task_type, judge=judge)
        return np.where(self.nearest(embeddings, task_type) >= self.floor, expected, np.nan)

    def judge_embedded(
        self, texts: Sequence[str], embeddings: np.ndarray, task_type: TaskType | str, *, judge: str | None = None
    ) -> np.ndarray:
        """`judge` for texts whose embeddings (m, d) are known, however far away they are."""
        chosen, name = judge or self.report["default"], self._known(task_type)
        if chosen == "neighbors":
            return expected_score(self.posterior(embeddings, name))
        if chosen != "head" or self.head is None:
            there = ["neighbors"] if self.head is None else ["neighbors", "head"]
            raise ValueError(f"The datastore has no judge {chosen!r}, only {there}.")
        kinds = [name] * len(texts)
        design = Design(text_features(texts, kinds), word_buckets(texts, kinds), embeddings, np.array(kinds))
        return expected_score(self.head.posterior(design))

    def posterior(self, embeddings: np.ndarray, task_type: TaskType | str, k: int = K_POSTERIOR) -> np.ndarray:
        """Distribution over the score of new texts, from their k nearest rows of the same task type.

        Args:
            embeddings: Unit rows (m, d) of the same encoder.
            task_type: Which rows to ask.
            k: Neighbors; all rows if there are fewer.

        Returns:
            Probabilities (m, C).

        Raises:
            ValueError: If the datastore has no rows of this task type.
        """
        name = self._known(task_type)
        rows, scores = self._rows[name]
        _, indices = top_k(rows, embeddings, k)
        transition = self.transitions[name]
        return posterior(neighbor_counts(scores, indices, transition.classes), transition)

    def nearest(self, embeddings: np.ndarray, task_type: TaskType | str) -> np.ndarray:
        """Cosine of each new text to the closest row of its task type (m,)."""
        similarities, _ = top_k(self._rows[self._known(task_type)][0], embeddings, 1)
        return similarities[:, 0]

    def add(
        self, texts: Sequence[str], scores: Sequence[int], task_types: Sequence[str], encoder: Encoder
    ) -> "ScoredDatastore":
        """A datastore with more rows: only the new texts are encoded, everything is learned from all rows again."""
        self._check_encoder(encoder)
        design, values = _design(texts, scores, task_types, encoder)
        merged = Design(*(np.concatenate(pair) for pair in zip(self.design.arrays(), design.arrays(), strict=True)))
        revision = self.encoder_revision
        return _learn(merged, np.concatenate([self.scores, values]), self.encoder, revision, self.k_transition)

    def save(self, path: str | Path) -> Path:
        """Write `datastore.safetensors` and `datastore.json` into a folder and return the folder."""
        names = sorted(self.transitions)
        tensors = {
            "embeddings": self.embeddings,
            "features": self.design.features,
            "buckets": self.design.buckets,
            "scores": self.scores,
            "task_types": np.searchsorted(names, self.design.kinds).astype(np.int64),
        }
        for name in names:
            tensors[f"{name}.matrix"] = self.transitions[name].matrix
            tensors[f"{name}.prior"] = self.transitions[name].prior
        if self.head is not None:
            tensors |= {f"head.{name}": array for name, array in self.head.tensors().items()}
        facts = {
            "rows": len(self),
            "width": int(self.embeddings.shape[1]),
            "classes": list(SCORES),
            "task_types": names,
            "encoder": self.encoder,
            "encoder_revision": self.encoder_revision,
            "k_transition": self.k_transition,
            "has_head": self.head is not None,
            "report": self.report,
            "floor": self.floor,
        }
        write_datastore(Path(path), tensors, facts)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "ScoredDatastore":
        """Read a folder that `save` wrote, checking everything before it is used.

        Raises:
            FileNotFoundError: If one of the two files is missing.
            TensorFileError: A `ValueError`, if they contradict each other or hold impossible values.
        """
        tensors, facts = read_datastore(Path(path))
        names = facts["task_types"]
        transitions = {
            name: ScoreTransition(np.array(SCORES), tensors[f"{name}.matrix"], tensors[f"{name}.prior"])
            for name in names
        }
        kinds = np.array(names)[tensors["task_types"]]
        design = Design(tensors["features"], tensors["buckets"], tensors["embeddings"], kinds)
        head = None
        if facts["has_head"]:
            head = ScoreHead(**{name: tensors[f"head.{name}"] for name in head_shapes(facts["width"])})
        known = (facts["encoder"], facts["encoder_revision"], facts["k_transition"])
        return cls(design, tensors["scores"], transitions, *known, head, facts["report"], float(facts["floor"]))

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> "ScoredDatastore":
        """Load a datastore from a folder or from a dataset repository on the Hub, whose two files alone are fetched.

        Args:
            source: Folder or repository id.
            revision: Branch, tag or commit of the repository.
        """
        return cls.load(local_folder(source, revision))

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Publish as a dataset repository, private unless `public=True`; see `hub.push_datastore` for the rest.

        Returns:
            What is on the Hub now (`hub.Pushed`).
        """
        # By its public name: what publishes stands above this module and imports it.
        push = import_module("hf_lmmixup").push_datastore
        with TemporaryDirectory() as folder:
            return push(self.save(folder), repo_id, **options)

    def _check_encoder(self, encoder: Encoder) -> None:
        if encoder.name != self.encoder:
            raise ValueError(
                f"The datastore was built with the encoder {self.encoder!r}, not {encoder.name!r}. "
                f"Load {self.encoder!r} or build the datastore again."
            )
        if None not in (found := (encoder.revision, self.encoder_revision)) and found[0] != found[1]:
            raise ValueError(f"The datastore is of revision {found[1]!r} of {self.encoder!r}, not {found[0]!r}.")

    def _known(self, task_type: TaskType | str) -> str:
        name = TaskType(task_type).value
        if name not in self.transitions:
            raise ValueError(f"The datastore has no rows of task type {name!r}, only {sorted(self.transitions)}.")
        return name


def build(
    texts: Sequence[str],
    scores: Sequence[int],
    task_types: Sequence[str],
    encoder: Encoder,
    k_transition: int = K_TRANSITION,
) -> ScoredDatastore:
    """Embed scored texts, estimate the transition of each task type and learn a head.

    Rows of one cluster or subject should stand together: the held-out folds are runs of consecutive rows.

    Args:
        texts: The texts as they will be met later, with their labels.
        scores: Score of each (0-5).
        task_types: Task type of each.
        encoder: Who embeds them.
        k_transition: Neighbors that are counted.

    Returns:
        The datastore.

    Raises:
        ValueError: If the three lists differ in length, are empty, or hold an unknown score or task type.
    """
    design, values = _design(texts, scores, task_types, encoder)
    return _learn(design, values, encoder.name, encoder.revision, k_transition)


def _design(
    texts: Sequence[str], scores: Sequence[int], task_types: Sequence[str], encoder: Encoder
) -> tuple[Design, np.ndarray]:
    if not len(texts) == len(scores) == len(task_types) > 0:
        raise ValueError(
            "A datastore needs equally many texts, scores and task types, at least one; "
            f"got {len(texts)}, {len(scores)} and {len(task_types)}."
        )
    unknown = set(scores) - set(SCORES)
    if unknown:
        raise ValueError(f"Scores {sorted(unknown)} are not allowed. Expected whole numbers from 0 to 5.")
    kinds = [TaskType(kind).value for kind in task_types]
    design = Design(text_features(texts, kinds), word_buckets(texts, kinds), encoder.encode(texts), np.array(kinds))
    return design, np.asarray(scores, dtype=np.int64)


def _learn(
    design: Design, scores: np.ndarray, encoder: str, revision: str | None, k_transition: int
) -> ScoredDatastore:
    transitions = {}
    for name in np.unique(design.kinds):
        rows = np.flatnonzero(design.kinds == name)
        transitions[str(name)] = estimate(scores[rows], build_graph(design.embeddings[rows], k_transition).indices)
    head = None
    report: dict[str, Any] = {"rows": len(scores), "default": "neighbors"}
    rows = learnable_rows(scores)
    if len(rows):
        seen = design.take(rows)
        report, calibration = compare_judges(seen, scores[rows], K_POSTERIOR, k_transition)
        head = fit_head(seen, scores[rows], report["penalty"], calibration)
    floor = distance_floor(design.embeddings, design.kinds)
    return ScoredDatastore(design, scores, transitions, encoder, revision, k_transition, head, report, floor)
