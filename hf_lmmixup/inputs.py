"""Where raw rows come from: files, folders and the Hub; each row as it is, with its place.

    raw_rows("pile.jsonl")       ->  ("pile.jsonl:1", {"instruction": "Add.", "input": "1 2", "output": "3"}), ...
    raw_rows("pile/")            ->  ("2024/june.parquet:1", {...}), ...     the files that `load_dataset` finds there
    raw_rows("ada/pile:main")    ->  ("pile:main:1", {...}), ...             a configuration of a Hub dataset

JSON Lines, JSON (both also with `.gz` behind) and Parquet files are read here, in a folder too: one bad line ends
`load_dataset`, a deeply nested one the whole process, and shards of several forms are too much for it. What else a
folder holds (CSV, other compressed files) is read by `load_dataset`, as Hub datasets are.
"""

import glob
import logging
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import ENOENT
from functools import lru_cache
from lzma import LZMAError
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import pyarrow as pa

from hf_lmmixup.jsonl import PACKED, SUFFIXES, Reject, read_json


logger = logging.getLogger(__name__)

PARQUET = ".parquet"
FILES = (*SUFFIXES, PARQUET)
OTHERS = (*FILES, ".csv", ".tsv", ".arrow", PACKED, ".bz2", ".xz", ".zst", ".zip")
"""What is told of where a folder's rows come from files of another format."""

SAVED = "state.json"
"""The file by which a folder of `Dataset.save_to_disk` is known."""

ABOUT_DATA = ("dataset_info.json", "dataset_infos.json")
"""Files of a dataset folder that hold no rows."""

Place = str
RawRow = tuple[Place, dict[str, Any] | Reject]


def raw_rows(source: str | Path, split: str = "train") -> Iterator[RawRow]:
    """The raw rows of a source one by one, as they are, each with its place; arguments as for `loading.load_rows`."""
    check_source(source)
    path = Path(source)
    if is_read_here(path):
        return _file_rows(path)
    if (path / SAVED).is_file() or (path / "dataset_dict.json").is_file():
        return _saved_rows(path, split)
    return _folder_rows(path, split) if path.is_dir() else _hub_rows(str(source), split)


def check_source(source: str | Path) -> None:
    """Refuse a file that is not there or cannot be read, before anything is begun.

    Raises:
        FileNotFoundError: If the name is that of a file and there is none.
        ValueError: If its suffix is unknown.
    """
    path = Path(source)
    is_file, accepted = path.is_file(), is_read_here(path)
    if not is_file and (accepted or (path.suffix.lower() in OTHERS and not path.exists())):
        raise FileNotFoundError(f"No file at {path}.")
    if is_file and not accepted:
        raise ValueError(
            f"{path} ends in {path.suffix!r}. Accepted files: {', '.join(FILES)}, and JSON with {PACKED} behind. "
            "Others that `load_dataset` reads, such as .csv, are accepted in a folder of their own: name the folder."
        )


def check_place(output: str | Path, *sources: str | Path) -> None:
    """Refuse an output within a folder that is read: a run reads what it writes there, and so does the next one.

    Raises:
        ValueError: If it lies in one, or begins with a `~`, which some libraries replace and others do not.
    """
    if str(output).startswith("~"):
        told = "begins with ~, which shells replace where it begins a word, and nobody in a recipe"
        raise ValueError(f"The output {output} {told}. Write the whole path.")
    place = Path(output).resolve()
    for source in sources:
        folder = Path(source)
        if folder.is_dir() and folder.resolve() in (place, *place.parents):
            raise ValueError(
                f"{output} lies in {source}, whose files are read as rows, so what is written there would be, too. "
                "Choose another --output, outside of it."
            )


def short_name(source: str) -> str:
    """What a source is called: a file's name without its suffix, the last part of a folder or a Hub id."""
    path = Path(source)
    if path.is_dir():
        return path.resolve().name
    return Path(path.name.removesuffix(PACKED)).stem if is_read_here(path) else path.name


def _file_rows(path: Path) -> Iterator[RawRow]:
    return _parquet_rows(path) if path.suffix == PARQUET else read_json(path)


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    name, number = path.name, 0
    with parquet_file(path) as parquet:
        for batch in parquet.iter_batches(batch_size=10_000):
            for row in batch.to_pylist():
                number += 1
                yield f"{name}:{number}", row


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`, whose faults are told with its name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none or a damaged one, or has two columns of one name, of which rows would hold the last.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as parquet:
            names = parquet.schema_arrow.names
            if doubled := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{path} has two columns {doubled!r}. Rename or remove one of them.")
            yield parquet
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # of the system, which names the file
            raise
        why = str(error).rstrip(".")
        raise ValueError(f"{path} is not a Parquet file, or a damaged one: {why}. Copy or make it again.") from error


def _saved_rows(folder: Path, split: str) -> Iterator[RawRow]:
    """The rows of a folder that `save_to_disk` wrote."""
    from datasets import load_from_disk

    try:
        loaded: Any = load_from_disk(str(folder))
    except (ValueError, KeyError, OSError) as error:
        if getattr(error, "errno", None) not in (None, ENOENT):
            raise
        why = str(error).rstrip(".")
        raise ValueError(f"{folder} is not whole as `save_to_disk` wrote it: {why}. Copy or save it again.") from error
    if isinstance(loaded, dict):
        loaded = _split_of(loaded, split, str(folder), f"as {folder}/SPLIT")
    return _numbered(loaded, folder.name)


def _folder_rows(folder: Path, split: str) -> Iterator[RawRow]:
    """The rows of a folder of files, of which `load_dataset` says which ones belong to the split."""
    from datasets import load_dataset, load_dataset_builder

    if (place := str(folder.resolve())) != glob.escape(place):
        raise ValueError(f"`load_dataset` takes the signs [, * and ? in {place} for a pattern. Rename the folder.")
    with _faults_of(folder):
        found: Any = load_dataset_builder(str(folder)).config.data_files or {}
    paths = [Path(file) for file in _split_of(found, split, str(folder), "by its file, or in a folder of its own")]
    _tell_of_others(folder, frozenset(Path(file) for files in found.values() for file in files))
    if not all(is_read_here(path) and path.is_file() for path in paths):
        with _faults_of(folder):
            # The cache of `datasets` knows a folder by the words of its card, so another folder's rows may be in it.
            yield from _numbered(load_dataset(str(folder), streaming=True, split=split), folder.name)
        return
    for path in paths:
        inside = path.parent.relative_to(folder.resolve()) if path.is_relative_to(folder.resolve()) else Path()
        for place, row in _file_rows(path):
            yield str(inside / place), row


@contextmanager
def _faults_of(folder: Path) -> Iterator[None]:
    """Tell what `load_dataset` cannot read in one sentence with the folder's name."""
    from datasets.table import CastError

    try:
        yield
    except (ValueError, EOFError, OSError, LZMAError, BadZipFile, zlib.error) as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None):  # of the system, as of a cache
            raise
        why = "their columns differ" if isinstance(error, CastError) else " ".join(str(error).split()).rstrip(".")
        advice = "Copy or unpack them again, make them JSON Lines, or give each form a folder of its own."
        raise ValueError(f"`load_dataset` cannot read the files of {folder}: {why}. {advice}") from error


def is_read_here(path: Path) -> bool:
    """Whether a file is read row by row here, by its name; what else there is `load_dataset` reads."""
    return path.suffix in FILES or (path.suffix == PACKED and Path(path.stem).suffix in SUFFIXES)


@lru_cache(maxsize=64)
def _tell_of_others(folder: Path, known: frozenset[Path]) -> None:
    """Say once what is left out: `load_dataset` takes the files of one format, the one that most of them have.

    It goes into no folder behind a link, and passes over a link to a file that is not there.
    """
    inside = [path.relative_to(folder.resolve()) for path in sorted(folder.resolve().rglob("*")) if path not in known]
    inside = [path for path in inside if path.name not in ABOUT_DATA and not any(p[0] == "." for p in path.parts)]
    ours = [path for path in inside if path.suffix.lower() in OTHERS]
    links = [path for path in ours if not (folder / path).exists()]
    links += [path for path in inside if (folder / path).is_symlink() and (folder / path).is_dir()]
    if links:
        told = "links to folders, and to files that are not there, are not read"
        logger.warning("%s: %s: %s.", folder, told, ", ".join(map(str, links[:3])))
    others = [path for path in ours if (folder / path).is_file()]
    if others and not (folder / "README.md").is_file():  # a card says itself what belongs to a dataset
        logger.warning("%s: files of another format are not read: %s.", folder, ", ".join(map(str, others[:3])))


def _hub_rows(source: str, split: str) -> Iterator[RawRow]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    if source.count("/") > 1:
        raise FileNotFoundError(f"{source} is neither a file, a folder nor a Hub dataset id (name or owner/name).")
    name, configuration, named = (*source.split(":", 2), "", "")[:3]
    try:
        loaded: Any = load_dataset(name, configuration or None)
    except (DatasetNotFoundError, ConnectionError) as error:
        known = f"{source} is neither a file nor a folder, nor found on the Hub"
        raise FileNotFoundError(f"{known}: {error}") from error
    except ValueError as error:
        advice = f"A configuration is named as {name}:CONFIGURATION."
        raise ValueError(f"{source} cannot be loaded from the Hub: {error} {advice}") from error
    rows = _split_of(loaded, named or split, source, f"as {name}:{configuration}:SPLIT")
    return _numbered(rows, Path(source).name)


def _split_of(splits: Mapping[str, Any], split: str, source: str, how: str) -> Any:
    if split not in splits:
        raise ValueError(f"{source} has the splits {sorted(map(str, splits))}, not {split!r}. Name one of them {how}.")
    return splits[split]


def _numbered(rows: Any, name: str) -> Iterator[RawRow]:
    return ((f"{name}:{number}", row) for number, row in enumerate(rows, start=1))
