r"""Scored texts as a memory: their embeddings, their scores and, per task type, how scores neighbour each other.

A new text is judged by its neighbours here (arXiv 2510.20449, quality reward). On disk a datastore is a folder of two
files, `datastore.safetensors` and `datastore.json`; nothing else in the folder is opened and nothing is unpickled.

One row::

    embedding (384,) of "Q: Why do tides...\nA: ..."    score 5    task type "qa"
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hf_lmmixup.neighbors import build_graph, top_k
from hf_lmmixup.records import SCORES, TaskType
from hf_lmmixup.transition import ScoreTransition, estimate, expected_score, neighbor_counts, posterior


TENSORS_FILE, META_FILE = "datastore.safetensors", "datastore.json"
FORMAT_VERSION = 1
K_TRANSITION = 3
"""Neighbours that are counted into the transition matrix (arXiv 2510.20449, code)."""
K_POSTERIOR = 16
"""Neighbours that judge a new text (arXiv 2510.20449, code)."""
MAX_META_BYTES = 1_000_000
UNIT_TOLERANCE = 1e-2
"""How far a row's length may be from 1: half-precision rows are off by a few thousandths."""


class DatastoreFormatError(ValueError):
    """A file of a datastore is not what it says it is."""


@dataclass(frozen=True, eq=False)
class ScoredDatastore:
    """Scored embeddings of several task types.

    Attributes:
        embeddings: Unit rows (n, d) float32.
        scores: Score of each row (n,) int64.
        task_types: Task type of each row (n,) as text.
        transitions: Task type -> its transition.
        encoder: Name of the encoder that made the embeddings.
        encoder_revision: Its revision, if it has one.
        k_transition: Neighbours counted into the transitions.
    """

    embeddings: np.ndarray
    scores: np.ndarray
    task_types: np.ndarray
    transitions: dict[str, ScoreTransition]
    encoder: str
    encoder_revision: str | None = None
    k_transition: int = K_TRANSITION

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        return {name: np.flatnonzero(self.task_types == name) for name in self.transitions}

    @cached_property
    def _embeddings(self) -> dict[str, np.ndarray]:
        return {name: self.embeddings[rows] for name, rows in self._rows.items()}

    def posterior(self, embeddings: np.ndarray, task_type: TaskType | str, k: int = K_POSTERIOR) -> np.ndarray:
        """Distribution over the score of new texts, from their k nearest rows of the same task type.

        Args:
            embeddings: Unit rows (m, d) of the same encoder.
            task_type: Which rows to ask.
            k: Neighbours; all rows if there are fewer.

        Returns:
            Probabilities (m, C).

        Raises:
            ValueError: If the datastore has no rows of this task type.
        """
        name = self._known(task_type)
        transition = self.transitions[name]
        _, indices = top_k(self._embeddings[name], embeddings, k)
        counts = neighbor_counts(self.scores[self._rows[name]], indices, transition.classes)
        return posterior(counts, transition)

    def expected(self, embeddings: np.ndarray, task_type: TaskType | str, k: int = K_POSTERIOR) -> np.ndarray:
        """The mean score under the posterior of each new text (m,)."""
        name = self._known(task_type)
        return expected_score(self.posterior(embeddings, name, k), self.transitions[name].classes)

    def nearest(self, embeddings: np.ndarray, task_type: TaskType | str) -> np.ndarray:
        """Cosine of each new text to the closest row of its task type (m,)."""
        similarities, _ = top_k(self._embeddings[self._known(task_type)], embeddings, 1)
        return similarities[:, 0]

    def save(self, path: str | Path) -> Path:
        """Write the two files into a folder, which is made if needed, and return the folder."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(self.transitions)
        tensors: dict[str, np.ndarray] = {
            "embeddings": np.ascontiguousarray(self.embeddings, np.float32),
            "scores": self.scores.astype(np.int64),
            "task_types": np.searchsorted(names, self.task_types).astype(np.int64),
        }
        for name in names:
            tensors[f"{name}.matrix"] = np.ascontiguousarray(self.transitions[name].matrix)
            tensors[f"{name}.prior"] = np.ascontiguousarray(self.transitions[name].prior)
        meta = {
            "format_version": FORMAT_VERSION,
            "rows": len(self),
            "width": int(self.embeddings.shape[1]),
            "classes": list(SCORES),
            "task_types": names,
            "encoder": self.encoder,
            "encoder_revision": self.encoder_revision,
            "k_transition": self.k_transition,
        }
        save_file(tensors, folder / TENSORS_FILE)
        (folder / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, path: str | Path) -> "ScoredDatastore":
        """Read a folder that `save` wrote, checking everything before it is used.

        Raises:
            FileNotFoundError: If one of the two files is missing.
            DatastoreFormatError: If they contradict each other or hold impossible values.
        """
        folder = Path(path)
        meta = _read_meta(folder / META_FILE)
        tensors = _read_tensors(folder / TENSORS_FILE, meta)
        names = np.array(meta["task_types"])
        try:
            transitions = {
                name: ScoreTransition(np.array(SCORES), tensors[f"{name}.matrix"], tensors[f"{name}.prior"])
                for name in meta["task_types"]
            }
        except ValueError as error:
            raise DatastoreFormatError(f"{folder / TENSORS_FILE}: {error}") from error
        return cls(
            tensors["embeddings"],
            tensors["scores"],
            names[tensors["task_types"]],
            transitions,
            meta["encoder"],
            meta["encoder_revision"],
            meta["k_transition"],
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> "ScoredDatastore":
        """Load a datastore from a folder or from a dataset repository on the Hub, whose two files alone are fetched.

        Args:
            source: Folder or repository id.
            revision: Branch, tag or commit of the repository.
        """
        if Path(source).is_dir():
            return cls.load(source)
        from huggingface_hub import hf_hub_download

        paths = [
            hf_hub_download(str(source), name, repo_type="dataset", revision=revision)
            for name in (META_FILE, TENSORS_FILE)
        ]
        return cls.load(Path(paths[0]).parent)

    def _known(self, task_type: TaskType | str) -> str:
        name = TaskType(task_type).value
        if name not in self.transitions:
            raise ValueError(f"The datastore has no rows of task type {name!r}, only {sorted(self.transitions)}.")
        return name


def build(
    texts: Sequence[str],
    scores: Sequence[int],
    task_types: Sequence[str],
    encoder: Any,
    k_transition: int = K_TRANSITION,
) -> ScoredDatastore:
    """Embed scored texts and estimate the transition of each task type.

    Args:
        texts: The texts as they will be met later, with their labels.
        scores: Score of each (0-5).
        task_types: Task type of each.
        encoder: An `Encoder`.
        k_transition: Neighbours that are counted.

    Returns:
        The datastore.

    Raises:
        ValueError: If the three lists differ in length, are empty, or hold an unknown score or task type.
    """
    if not len(texts) == len(scores) == len(task_types) > 0:
        raise ValueError(
            f"A datastore needs equally many texts, scores and task types, at least one; "
            f"got {len(texts)}, {len(scores)} and {len(task_types)}."
        )
    embeddings = encoder.encode(texts)
    names = np.array([TaskType(name).value for name in task_types])
    values = np.asarray(scores, dtype=np.int64)
    transitions = {}
    for name in np.unique(names):
        rows = np.flatnonzero(names == name)
        graph = build_graph(embeddings[rows], k_transition)
        transitions[str(name)] = estimate(values[rows], graph.indices)
    return ScoredDatastore(embeddings, values, names, transitions, encoder.name, encoder.revision, k_transition)


META_TYPES: dict[str, tuple[type, ...]] = {
    "format_version": (int,),
    "rows": (int,),
    "width": (int,),
    "classes": (list,),
    "task_types": (list,),
    "encoder": (str,),
    "encoder_revision": (str, type(None)),
    "k_transition": (int,),
}


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no datastore: it has no {path.name}.")
    if path.stat().st_size > MAX_META_BYTES:
        raise DatastoreFormatError(f"{path} has {path.stat().st_size} bytes. At most {MAX_META_BYTES} are allowed.")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DatastoreFormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(meta, dict) or set(meta) != set(META_TYPES):
        raise DatastoreFormatError(f"{path} must hold exactly the keys {sorted(META_TYPES)}.")
    for key, types in META_TYPES.items():
        if not isinstance(meta[key], types) or isinstance(meta[key], bool):
            raise DatastoreFormatError(f"{path}: {key} has type {type(meta[key]).__name__}.")
    kinds = {kind.value for kind in TaskType}
    good = meta["task_types"] == sorted(set(map(str, meta["task_types"]))) and set(meta["task_types"]) <= kinds
    if meta["format_version"] != FORMAT_VERSION or meta["classes"] != list(SCORES) or not good:
        raise DatastoreFormatError(
            f"{path}: expected format version {FORMAT_VERSION}, classes {list(SCORES)} and sorted task types out of "
            f"{sorted(kinds)}."
        )
    return meta


def _read_tensors(path: Path, meta: dict[str, Any]) -> dict[str, np.ndarray]:
    size = len(SCORES)
    expected = {
        "embeddings": ("F32", [meta["rows"], meta["width"]]),
        "scores": ("I64", [meta["rows"]]),
        "task_types": ("I64", [meta["rows"]]),
    }
    for name in meta["task_types"]:
        expected[f"{name}.matrix"] = ("F64", [size, size])
        expected[f"{name}.prior"] = ("F64", [size])
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no datastore: it has no {path.name}.")
    try:
        with safe_open(path, framework="numpy") as file:
            found = {
                key: (file.get_slice(key).get_dtype(), list(file.get_slice(key).get_shape())) for key in file.keys()
            }
            if found != expected:
                raise DatastoreFormatError(f"{path} holds {found}. Its {META_FILE} announces {expected}.")
            tensors = {key: file.get_tensor(key) for key in expected}
    except (SafetensorError, OSError) as error:
        raise DatastoreFormatError(f"{path} is not a valid safetensors file: {error}") from error
    _check_values(path, tensors, len(meta["task_types"]))
    return tensors


def _check_values(path: Path, tensors: dict[str, np.ndarray], kinds: int) -> None:
    embeddings, scores, codes = tensors["embeddings"], tensors["scores"], tensors["task_types"]
    if len(scores) == 0:
        raise DatastoreFormatError(f"{path} has no rows.")
    if not np.isfinite(embeddings).all():
        raise DatastoreFormatError(f"{path}: an embedding is not finite.")
    if not np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=UNIT_TOLERANCE):
        raise DatastoreFormatError(f"{path}: an embedding does not have length 1.")
    if scores.min() < SCORES[0] or scores.max() > SCORES[-1]:
        raise DatastoreFormatError(f"{path}: scores range from {scores.min()} to {scores.max()}, not within 0 to 5.")
    if codes.min() < 0 or sorted(set(codes.tolist())) != list(range(kinds)):
        raise DatastoreFormatError(f"{path}: the rows' task types are not those of {META_FILE}.")
