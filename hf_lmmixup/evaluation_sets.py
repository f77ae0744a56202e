"""The texts of evaluation sets, as decontamination needs them: what a model is asked there.

read_evaluations(["gsm8k_test.jsonl", "openai/gsm8k:main"])  ->  {"gsm8k_test": ["Natalia sold ..."], ...}

Of a conversation every user turn is a text of its own. Joined they would hide a copy: a row that recites the question
behind five worked examples, or the first of two questions, holds less than half of the whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_lmmixup.inputs import SAVED, check_source, is_read_here, raw_rows, short_name
from hf_lmmixup.jsonl import Reject
from hf_lmmixup.loading import ROLES


COLUMNS = ("question", "prompt", "problem", "instruction", "query", "text", "messages", "conversations", "input")
"""Where the text of an evaluation row may stand, as a string or as turns; the first that a row has is taken."""


def read_evaluations(names: Sequence[str]) -> dict[str, list[str]]:
    """Read evaluation sets.

    Args:
        names: `.jsonl`, `.json` (both also with `.gz` behind) or `.parquet` files, folders, or Hub ids, as
            `owner/name` or `owner/name:configuration`. Of several splits the test split is read, if there is one.

    Returns:
        Name -> distinct texts, in their order.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If two sets have the same name, or a set holds no text in a known column.
    """
    found: dict[str, list[str]] = {}
    for source in names:
        name = short_name(source)
        if name in found:
            raise ValueError(f"Two evaluation sets are called {name!r}. Rename one of them, or copy it into a file.")
        found[name] = list(dict.fromkeys(text for row in _rows(source) for text in _texts(row)))
        if not found[name]:
            raise ValueError(f"The evaluation set {source} has no text in any of the columns {list(COLUMNS)}.")
    return found


def local_evaluations(names: Sequence[str]) -> list[str]:
    """Those of the evaluation sets that are files and folders of this machine.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If it is of a kind that is not read.
    """
    for name in names:
        if is_read_here(Path(name)) and not Path(name).is_file():
            raise FileNotFoundError(f"No evaluation set at {name}.")
        check_source(name)
    return [name for name in names if Path(name).exists()]


def _texts(row: Any) -> list[str]:
    """What a model is asked in one row: a text, or the user turns of a conversation."""
    if isinstance(row, Reject):
        return []
    value = next((row[column] for column in COLUMNS if row.get(column)), None)
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, dict)]
        asked = [turn for turn in turns if ROLES.get(str(turn.get("role") or turn.get("from"))) == "user"]
        found = [turn.get("content") or turn.get("value") for turn in asked]
    else:
        found = [value]
    return [text for text in found if text and isinstance(text, str)]


def _rows(source: str) -> Iterable[Any]:
    path = Path(source)
    if is_read_here(path) or (path / SAVED).is_file():
        return (row for _, row in raw_rows(source))
    return _hub(source)


def _hub(source: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    name, _, configuration = source.partition(":")
    # A folder is streamed past the cache of `datasets`, which may hold another one's rows (see `loading`).
    splits: Any = load_dataset(name, configuration or None, streaming=Path(name).is_dir())
    for split in ["test"] if "test" in splits else list(splits):
        yield from splits[split]
