"""The embeddings of a run's rows: computed once, kept on disk in half precision, read by every stage.

They are written block by block, and a file beside them says how many rows are done, so an embedding that was killed
goes on from there. Stages see the rows as they need them; nothing holds all of them in single precision.

One folder::

    embeddings.npy      (n, d) float16, rows in order of id
    graph.safetensors   their neighbor graph
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, starmap
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_lmmixup.encoder import Encoder, completed, single
from hf_lmmixup.journal import digest
from hf_lmmixup.neighbors import NeighborGraph, build_graph
from hf_lmmixup.records import pair_text
from hf_lmmixup.run_directory import DAMAGED, read_json, write_json
from hf_lmmixup.tables import places_of, text_pairs


EMBEDDINGS, GRAPH, DONE = "embeddings.npy", "graph.safetensors", "done.json"

BLOCK = 4096
"""Rows that the encoder gets at a time."""

MARK_SECONDS = 1.0
"""Time between two marks on the disk; rows embedded since the last one are what a kill costs."""

NOT_TAKEN = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV)
"""Errors of file systems where room cannot be taken beforehand."""

NEIGHBORS = 24
"""Width of the shared graph. Where two fifths of the rows are clustered, as many of them are left among the neighbors
as a graph of their own would have: on T0 both give clusters of the same cohesion."""


class Vectors:
    """The unit vectors of a set of rows, and their neighbor graph.

    Args:
        folder: What `embed` wrote.
        ids: The rows' ids, in the order of the vectors.
    """

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        self.folder = folder
        try:
            self.matrix: np.ndarray = np.load(folder / EMBEDDINGS, mmap_mode="r")
        except (EOFError, ValueError) as error:
            raise ValueError(DAMAGED.format(folder / EMBEDDINGS, error)) from error
        self._ids = pa.array(ids, pa.string())
        if len(self.matrix) != len(ids):
            raise ValueError(f"{folder} holds {len(self.matrix)} vectors for {len(ids)} rows. Delete the folder.")

    @property
    def graph(self) -> NeighborGraph:
        """The graph of all rows, read anew each time; built and saved when it is first needed."""
        path = self.folder / GRAPH
        if path.is_file():
            return NeighborGraph.load(path)
        graph, partial = build_graph(self.matrix, NEIGHBORS), path.with_name(f".{GRAPH}.partial")
        graph.save(partial)
        os.replace(partial, path)
        return graph

    def places(self, ids: Sequence[str]) -> np.ndarray:
        """Row numbers of ids (m,).

        Raises:
            KeyError: If an id is not among them.
        """
        places = self.known(ids)
        if (places < 0).any():
            raise KeyError(f"No vector has the id {ids[int(places.argmin())]!r}.")
        return places

    def of(self, ids: Sequence[str]) -> np.ndarray:
        """Vectors of ids (m, d), float16."""
        return self.at(self.places(ids))

    def at(self, places: np.ndarray) -> np.ndarray:
        """Vectors of distinct rows (m, d), float16; not copied where they are all rows in their order."""
        are_all = len(places) == len(self.matrix) and bool((np.diff(places) > 0).all())
        return self.matrix if are_all else np.asarray(self.matrix[places])

    def known(self, ids: Sequence[str]) -> np.ndarray:
        """Row numbers of ids (m,), -1 for those that are not here."""
        return places_of(pa.array(ids, pa.string()), self._ids)


class KnownTexts:
    """An encoder that reads the vectors of a run's rows from disk and encodes only other texts.

    Args:
        encoder: Who encodes the others.
        rows: Rows with `prompt` and `completion`.
        vectors: Their vectors, in the same order.
    """

    def __init__(self, encoder: Encoder, rows: Dataset, vectors: Vectors) -> None:
        self.name, self.revision = encoder.name, encoder.revision
        self._encoder, self._matrix = encoder, vectors.matrix
        hashes = np.fromiter((hash(text) for text in texts_of(rows)), np.int64, len(rows))
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows (n, d), float32."""
        if not len(texts) or not len(self._hashes):
            return self._encoder.encode(texts)
        wanted = np.fromiter(map(hash, texts), np.int64, len(texts))
        found = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        is_known = self._hashes[found] == wanted
        return completed(texts, self._encoder, single(self._matrix[self._order[found[is_known]]]), is_known)


def embed(
    rows: Dataset,
    encoder: Encoder,
    folder: Path,
    *,
    earlier: Vectors | None = None,
    block: int = BLOCK,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the vectors of rows into a folder; what an earlier call has written there stays.

    Args:
        rows: Rows with `id`, `prompt` and `completion`.
        encoder: Embeds `records.pair_text` of each.
        folder: Where to; made if needed.
        earlier: Vectors by the same encoder; rows that have one are not encoded.
        block: Rows that the encoder gets at a time.
        progress: Called with the number of rows done so far.

    Raises:
        OSError: If the disk has no room for the vectors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = rows["id"][:]
    places = None if earlier is None else earlier.known(ids)
    done, mark = 0, {"rows": digest(ids), "encoder": encoder.name}
    if (folder / DONE).is_file() and (state := read_json(folder / DONE)) | mark == state:
        done = state["done"]
    matrix = np.load(folder / EMBEDDINGS, mmap_mode="r+") if done else None
    marked_at = time.monotonic()

    def keep() -> None:
        if matrix is not None:
            matrix.flush()
            write_json(folder / DONE, {**mark, "done": done})

    try:
        for start, texts in _blocks(rows, block, done):
            if earlier is None or places is None:
                vectors = encoder.encode(texts)
            else:
                here = places[start : start + block]
                vectors = completed(texts, encoder, earlier.matrix[here[here >= 0]], here >= 0)
            if matrix is None:
                matrix = _empty_matrix(folder / EMBEDDINGS, (len(rows), vectors.shape[1]))
            matrix[start : start + len(vectors)] = vectors
            done = start + len(vectors)
            if time.monotonic() - marked_at >= MARK_SECONDS:
                keep()
                marked_at = time.monotonic()
            if progress is not None:
                progress(done)
    finally:
        keep()
    if not len(rows):
        np.save(folder / EMBEDDINGS, np.zeros((0, encoder.encode([]).shape[1]), np.float16))


def _empty_matrix(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A matrix on the disk that has its room from the start: a mapped file that finds none later ends the process."""
    try:
        matrix = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        _take_room(path)
    except OSError as error:
        path.unlink(missing_ok=True)  # what was taken so far
        error.filename = str(path)
        raise
    return matrix


def _take_room(path: Path) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno not in NOT_TAKEN:
            raise


def encoded(rows: Dataset, encoder: Encoder, known: Vectors) -> np.ndarray:
    """The vectors (n, d) of rows, float32; their texts are in memory a block at a time.

    Args:
        rows: Rows with `id`, which is that of their texts, `prompt` and `completion`.
        encoder: Encodes those that are not known.
        known: Vectors by the same encoder.
    """
    places = known.known(rows["id"][:])
    vectors = np.empty((len(rows), known.matrix.shape[1]), np.float32)
    for start, texts in _blocks(rows, BLOCK):
        here = places[start : start + BLOCK]
        part = single(known.matrix[here[here >= 0]])
        vectors[start : start + BLOCK] = completed(texts, encoder, part, here >= 0)
    return vectors


def texts_of(rows: Dataset) -> Iterator[str]:
    """The texts that are embedded, in the order of the rows."""
    return chain.from_iterable(texts for _, texts in _blocks(rows, BLOCK))


def _blocks(rows: Dataset, size: int, first: int = 0) -> Iterator[tuple[int, list[str]]]:
    """The texts that are embedded, a block at a time, each with the number of its first row."""
    return ((start, list(starmap(pair_text, pairs))) for start, pairs in text_pairs(rows, size, first))
