"""The texts of evaluation sets, as decontamination needs them: what a model is asked there.

read_evaluations(["gsm8k_test.jsonl", "openai/gsm8k:main"])  ->  {"gsm8k_test": ["Natalia sold ..."], ...}
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_lmmixup.jsonl import Reject, read_json


COLUMNS = ("question", "prompt", "problem", "instruction", "query", "text", "messages")
"""Where the text of an evaluation row may stand; the first that a row has is taken."""

JSON, PARQUET = (".jsonl", ".json", ".ndjson"), ".parquet"


def read_evaluations(names: Sequence[str]) -> dict[str, list[str]]:
    """Read evaluation sets.

    Args:
        names: `.jsonl`, `.json` or `.parquet` files, or Hub ids, as `owner/name` or `owner/name:configuration`, of
            which the test split is read where there is one.

    Returns:
        Name -> distinct texts, in their order.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If two sets have the same name, or one holds no text in a known column.
    """
    found: dict[str, list[str]] = {}
    for source in names:
        name = Path(source).stem if Path(source).suffix else source.rpartition("/")[2]
        if name in found:
            raise ValueError(f"Two evaluation sets are called {name!r}. Rename one of the files.")
        found[name] = list(dict.fromkeys(text for row in _rows(source) if (text := _text(row))))
        if not found[name]:
            raise ValueError(f"The evaluation set {source} has no text in any of the columns {list(COLUMNS)}.")
    return found


def local_evaluations(names: Sequence[str]) -> list[str]:
    """Those of the evaluation sets that are files and folders of this machine.

    Raises:
        FileNotFoundError: If a file does not exist.
    """
    for name in names:
        if Path(name).suffix in (*JSON, PARQUET) and not Path(name).is_file():
            raise FileNotFoundError(f"No evaluation set at {name}.")
    return [name for name in names if Path(name).exists()]


def _text(row: Any) -> str | None:
    if isinstance(row, Reject):
        return None
    value = next((row[column] for column in COLUMNS if row.get(column)), None)
    if isinstance(value, list):
        value = next((turn.get("content") for turn in value if isinstance(turn, dict)), None)
    return value if isinstance(value, str) else None


def _rows(source: str) -> Iterable[Any]:
    path = Path(source)
    if path.suffix in JSON:
        return (row for _, row in read_json(path))
    if path.suffix == PARQUET:
        return _parquet(path)
    return _hub(source)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"No evaluation set at {path}.")
    try:
        yield from pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error


def _hub(source: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    name, _, configuration = source.partition(":")
    splits: Any = load_dataset(name, configuration or None)
    for split in ["test"] if "test" in splits else list(splits):
        yield from splits[split]
