"""The folder of a datastore: what its two files must hold, and the check that they do.

The facts file of the bundled datastore begins::

    {"classes": [0, 1, 2, 3, 4, 5], "encoder": "sentence-transformers/all-MiniLM-L6-v2", "floor": 0.1, ...}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_lmmixup.features import BUCKET_WIDTH, BUCKETS, FEATURES
from hf_lmmixup.records import SCORES, TaskType
from hf_lmmixup.score_head import head_shapes
from hf_lmmixup.tensor_files import TensorFileError, read_facts, read_tensors, write_files


TENSORS_FILE, FACTS_FILE = "datastore.safetensors", "datastore.json"
FORMAT_VERSION = 1
UNIT_TOLERANCE = 1e-2
"""How far a row's length may be from 1: half-precision rows are off by a few thousandths."""
SUM_TOLERANCE = 1e-6

FACT_TYPES: dict[str, tuple[type, ...]] = {
    "format_version": (int,),
    "rows": (int,),
    "width": (int,),
    "classes": (list,),
    "task_types": (list,),
    "encoder": (str,),
    "encoder_revision": (str, type(None)),
    "k_transition": (int,),
    "has_head": (bool,),
    "report": (dict,),
    "floor": (float, int),
}


def write_datastore(folder: Path, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write the two files into a folder, which is made if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_files(tensors, {"format_version": FORMAT_VERSION, **facts}, folder / TENSORS_FILE, folder / FACTS_FILE)


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or one with the two files of a dataset repository on the Hub; nothing else is fetched.

    Raises:
        FileNotFoundError: If there is neither such a folder nor such a repository, or the Hub cannot be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    try:
        files = [
            hf_hub_download(str(source), name, repo_type="dataset", revision=revision)
            for name in (TENSORS_FILE, FACTS_FILE)
        ]
    except (EntryNotFoundError, HFValidationError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(
            f"No datastore at {source}: there is no such folder, and on the Hub: {type(error).__name__}. "
            "Build one with `lmmixup datastore build`, or name a folder or a dataset repository (OWNER/NAME)."
        ) from error
    return Path(files[0]).parent


def read_datastore(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read and check the two files of a folder; nothing else in it is opened.

    Raises:
        FileNotFoundError: If one of them is missing.
        TensorFileError: If they contradict each other or hold impossible values.
    """
    facts = read_facts(folder / FACTS_FILE, FACT_TYPES)
    _check_facts(folder / FACTS_FILE, facts)
    tensors = read_tensors(folder / TENSORS_FILE, _shapes(facts))
    _check_rows(folder / TENSORS_FILE, tensors, len(facts["task_types"]))
    _check_chances(folder / TENSORS_FILE, tensors)
    return tensors, facts


def _shapes(facts: Mapping[str, Any]) -> dict[str, tuple[str, list[int]]]:
    rows, width, size = facts["rows"], facts["width"], len(SCORES)
    shapes = {
        "embeddings": ("float32", [rows, width]),
        "features": ("float32", [rows, len(FEATURES)]),
        "buckets": ("uint16", [rows, BUCKET_WIDTH]),
        "scores": ("int64", [rows]),
        "task_types": ("int64", [rows]),
    }
    for name in facts["task_types"]:
        shapes[f"{name}.matrix"] = ("float64", [size, size])
        shapes[f"{name}.prior"] = ("float64", [size])
    if facts["has_head"]:
        shapes |= {f"head.{name}": ("float64", shape) for name, shape in head_shapes(width).items()}
    return shapes


def _check_facts(path: Path, facts: Mapping[str, Any]) -> None:
    kinds = sorted(kind.value for kind in TaskType)
    if facts["format_version"] != FORMAT_VERSION:
        raise TensorFileError(f"{path}: format version {facts['format_version']}, but only {FORMAT_VERSION} is known.")
    if facts["classes"] != list(SCORES):
        raise TensorFileError(f"{path}: classes {facts['classes']} are not {list(SCORES)}.")
    named = facts["task_types"]
    if not named or named != [kind for kind in kinds if kind in named]:
        raise TensorFileError(f"{path}: task types {named} are not a sorted choice of {kinds}.")
    if facts["rows"] < 1 or facts["width"] < 1 or facts["k_transition"] < 1:
        raise TensorFileError(f"{path}: rows, width and k_transition must be at least 1.")
    judges = ("neighbors", "head") if facts["has_head"] else ("neighbors",)
    if facts["report"].get("default") not in judges:
        raise TensorFileError(f"{path}: the default judge {facts['report'].get('default')!r} is not one of {judges}.")
    if not -1 <= facts["floor"] <= 1:
        raise TensorFileError(f"{path}: floor {facts['floor']} is not a cosine.")


def _check_rows(path: Path, tensors: Mapping[str, np.ndarray], kinds: int) -> None:
    scores, codes = tensors["scores"], tensors["task_types"]
    if not np.allclose(np.linalg.norm(tensors["embeddings"], axis=1), 1, atol=UNIT_TOLERANCE):
        raise TensorFileError(f"{path}: an embedding does not have length 1.")
    if scores.min() < SCORES[0] or scores.max() > SCORES[-1]:
        raise TensorFileError(f"{path}: scores go from {scores.min()} to {scores.max()}, not within 0 to 5.")
    if sorted(set(codes.tolist())) != list(range(kinds)):
        raise TensorFileError(f"{path}: the rows are not of the {kinds} task types that {FACTS_FILE} names.")
    if tensors["buckets"].max() >= BUCKETS:
        raise TensorFileError(f"{path}: a hashed word lies outside the table of {BUCKETS}.")


def _check_chances(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    for name, tensor in tensors.items():
        if name.endswith((".matrix", ".prior")):
            off = np.abs(tensor.sum(-1) - 1).max()
            if off > SUM_TOLERANCE or tensor.min() < 0:
                raise TensorFileError(f"{path}: the rows of {name} are not chances that sum to 1.")
    if "head.scale" in tensors and tensors["head.scale"].min() <= 0:
        raise TensorFileError(f"{path}: head.scale holds a number that is not positive.")
