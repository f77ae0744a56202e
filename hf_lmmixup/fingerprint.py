"""What a run is made from: inputs as a few numbers, which change if a file or folder does, and settings.

input_fingerprint("pile.jsonl")   ->  {"name": "pile.jsonl", "bytes": 5210, "sha256": "9c1f..."}
input_fingerprint("pile/")        ->  {"name": "pile", "files": 3, "bytes": 15020, "sha256": "07be..."}
input_fingerprint("owner/name")   ->  {"name": "owner/name"}
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


SERVER = frozenset(f"distiller.{name}" for name in ("endpoint", "key_variable", "allow_http", "concurrency"))
"""Settings that say where a served model is; it may come back at another address and go on."""


def input_fingerprint(source: str) -> dict[str, Any]:
    """What tells one input from another.

    Args:
        source: A file, a folder, or the name of anything else.

    Returns:
        Size and SHA-256 of a file. Of a folder the number and size of its files, and the SHA-256 of their places and
        contents; hidden files and the caches of `datasets` do not count. Of anything else the name.
    """
    path = Path(source)
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): _size_and_digest(file) for file in _files(path)}
        listing = json.dumps(sorted(files.items())).encode()
        known = {"files": len(files), "bytes": sum(size for size, _ in files.values())}
        return {"name": path.resolve().name, **known, "sha256": hashlib.sha256(listing).hexdigest()}
    if not path.is_file():
        return {"name": source}
    size, digest = _size_and_digest(path)
    return {"name": path.name, "bytes": size, "sha256": digest}


def changes_results(key: str, before: Any, now: Any) -> bool:
    """Whether a setting that was one thing and is another changes what a run writes."""
    of_server = key.removeprefix("recipe.") in SERVER and None not in (before, now)
    return before != now and not of_server


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping of dotted keys: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.is_file() and not is_hidden and not file.match("cache-*.arrow"):
            yield file


def _size_and_digest(file: Path) -> tuple[int, str]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return stream.tell(), digest
