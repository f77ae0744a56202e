"""The MiniLM's vectors of the texts that ship with this package, so that nobody waits for them.

Where a processor has no fast bfloat16, to encode the bundled datastore takes half a minute, in every process that asks
for it. The file has one row for each text of the mini MIXTURE and of the quickstart's pool::

    keys     (n,) int64          the text's `key`
    vectors  (n, 384) float16    its unit vector, computed in float32

`python dataset_scripts/mixture.py vectors` writes it; its tests compute some rows again.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from hf_lmmixup import bundled
from hf_lmmixup.records import pair_text


FILE = "data/minilm_vectors.safetensors"


def key(text: str) -> int:
    """64 bits of a text's BLAKE2b, as a signed number."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def shipped_texts() -> list[str]:
    """The distinct texts that ship with the package, as encoders get them."""
    pool = [json.loads(line) for line in bundled.pool_file().read_text(encoding="utf-8").splitlines()]
    texts = [row.text for row in bundled.rated_texts(split=None)]
    return list(dict.fromkeys(texts + [pair_text(row["prompt"], row["completion"]) for row in pool]))


def write_vectors(vectors: np.ndarray) -> Path:
    """Keep the unit vectors (n, d) of `shipped_texts()`; returns the file."""
    tensors = {"keys": np.array([key(text) for text in shipped_texts()]), "vectors": vectors.astype(np.float16)}
    save_file(tensors, _file())
    return _file()


@cache
def shipped_vectors() -> tuple[dict[int, int], np.ndarray]:
    """The row of each key, and the vectors (n, d), float16."""
    tensors = load_file(_file())
    return {key: row for row, key in enumerate(tensors["keys"].tolist())}, tensors["vectors"]


def rows_of(texts: Sequence[str]) -> np.ndarray:
    """The row of each text (n,), -1 where there is none."""
    rows, _ = shipped_vectors()
    return np.fromiter((rows.get(key(text), -1) for text in texts), np.int64, len(texts))


def _file() -> Path:
    return Path(str(resources.files("hf_lmmixup").joinpath(FILE)))
