"""Arrays and facts on disk: one safetensors file, one JSON file, and readers that believe neither.

Nothing here unpickles or runs anything. A file is checked against what it must hold (keys, types, shapes, finite
numbers) before any of it is used, and every complaint names the file. One facts file::

    {"format_version": 1, "rows": 989, "width": 384, "encoder": "sentence-transformers/all-MiniLM-L6-v2", ...}
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hf_lmmixup.jsonl import strict_json


MAX_FACTS_BYTES = 1_000_000
TYPE_NAMES = {"float32": "F32", "float64": "F64", "int64": "I64", "uint16": "U16"}
"""numpy's names of the types that are written, and those of the file format."""


class TensorFileError(ValueError):
    """A file is not what it says it is."""


def write_files(
    tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any], tensors_file: Path, facts_file: Path
) -> None:
    """Write both files; equal contents give equal bytes, and two that are there are of one writing.

    Raises:
        OSError: If the disk is full or fails; what was there before is then there still.
    """
    partial = {path: path.with_name(f".{path.name}.partial") for path in (tensors_file, facts_file)}
    try:
        save_tensors({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, partial[tensors_file])
        partial[facts_file].write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        facts_file.unlink(missing_ok=True)  # or a crash now would leave new arrays beside old facts
        for path, written in partial.items():
            written.replace(path)
    except SafetensorError as error:
        raise OSError(f"{tensors_file} cannot be written: {error}") from error
    finally:
        for written in partial.values():
            written.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that others may read as they may any new file; by itself the library forbids it."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def read_facts(path: Path, types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Read a JSON object that has exactly these keys, each of one of these types (a `bool` is no `int`).

    Raises:
        FileNotFoundError: If there is no such file.
        TensorFileError: If it holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no file {path.name}.")
    if path.stat().st_size > MAX_FACTS_BYTES:
        raise TensorFileError(f"{path} has {path.stat().st_size} bytes. At most {MAX_FACTS_BYTES} are allowed.")
    try:
        facts = strict_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(facts, dict) or set(facts) != set(types):
        raise TensorFileError(f"{path} must be an object with exactly the keys {sorted(types)}.")
    for key, allowed in types.items():
        if not isinstance(facts[key], allowed) or (isinstance(facts[key], bool) and bool not in allowed):
            raise TensorFileError(f"{path}: {key} is a {type(facts[key]).__name__}, which it may not be.")
    return facts


def read_tensors(path: Path, shapes: Mapping[str, tuple[str, list[int]]]) -> dict[str, np.ndarray]:
    """Read exactly these arrays: name -> (numpy type, shape), all numbers finite.

    Shapes are compared before anything is read, so a file that lies about them costs no memory.

    Raises:
        FileNotFoundError: If there is no such file.
        TensorFileError: If names, types, shapes or numbers are others.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no file {path.name}.")
    wanted = {name: (TYPE_NAMES[kind], shape) for name, (kind, shape) in shapes.items()}
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            found = {name: (part.get_dtype(), list(part.get_shape())) for name, part in slices.items()}
            if found != wanted:
                odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
                raise TensorFileError(f"{path}: {odd[0]} is {found.get(odd[0])}, but must be {wanted.get(odd[0])}.")
            tensors = {name: file.get_tensor(name) for name in sorted(wanted)}
    except (SafetensorError, OSError) as error:
        raise TensorFileError(f"{path} is not a valid safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise TensorFileError(f"{path}: {name} holds a number that is not finite.")
    return tensors
