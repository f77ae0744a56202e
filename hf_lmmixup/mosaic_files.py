"""What mosaics are made from when rows lie in a file: conversations whole, and every column of our own tables.

`loading.load_rows` writes a conversation of several turns as one prompt; joined turn by turn, it must keep its turns::

    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    -> {"id": "5f1d0c8f1f0b7a52", "messages": [{"role": "user", "content": "Hi"}, ...], "source": "pile.jsonl"}

What is dropped, and why, is what `load_rows` says.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from hf_lmmixup.inputs import RawRow, raw_rows
from hf_lmmixup.jsonl import Reject
from hf_lmmixup.loading import ROLES, load_rows, normalize_rows
from hf_lmmixup.records import Outcome
from hf_lmmixup.stage_files import WRITTEN, read_rows


CONVERSATIONS = Features(
    {
        "id": Value("string"),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "source": Value("string"),
    }
)


def read_turns(source: str | Path, *, limit: int | None = None, split: str = "train") -> Outcome:
    """Read rows of any form, conversations with their turns.

    Args:
        source: What `load_rows` reads, or a file that a stage wrote, of which every column is kept.
        limit: Read at most this many raw rows.
        split: Which split of the source.

    Returns:
        Rows with `prompt` and `completion`, or with `messages`, and place -> reason of every reject.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If no row can be used.
    """
    first = next((row for _, row in raw_rows(source, split) if not isinstance(row, Reject)), {})
    if _spoken(first) is None:
        if Path(source).suffix in WRITTEN:
            return read_rows(source, limit=limit)
        return load_rows(source, limit=limit, split=split)
    spoken: dict[str, list[Any] | None] = {}
    name = Path(str(source)).name
    outcome = normalize_rows(_noted(raw_rows(source, split), spoken), name=name, limit=limit)
    if not len(outcome.dataset):
        raise ValueError(f"{source} holds no usable row: rejected for {sorted(set(outcome.dropped.values()))}.")
    kept = [turns for place, turns in spoken.items() if place not in outcome.dropped][: len(outcome.dataset)]
    columns = {
        "id": outcome.dataset["id"][:],
        "messages": [_messages(turns or _pair(row)) for turns, row in zip(kept, outcome.dataset, strict=True)],
        "source": outcome.dataset["source"][:],
    }
    return Outcome(Dataset.from_dict(columns, features=CONVERSATIONS), outcome.dropped)


def _noted(rows: Iterator[RawRow], spoken: dict[str, list[Any] | None]) -> Iterator[RawRow]:
    """The rows, with the turns of each noted under its place."""
    for place, row in rows:
        if not isinstance(row, Reject):
            spoken[place] = _spoken(row)
        yield place, row


def _spoken(row: dict[str, Any]) -> list[Any] | None:
    """The turns of a raw row; `None` for a row of two texts."""
    for column in ("messages", "conversations"):
        if isinstance(row.get(column), list):
            return row[column]
    prompt, completion = row.get("prompt"), row.get("completion")
    return [*prompt, *completion] if isinstance(prompt, list) and isinstance(completion, list) else None


def _pair(row: Any) -> list[dict[str, str]]:
    """The turns of a row of two texts among conversations."""
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]


def _messages(turns: list[Any]) -> list[dict[str, str]]:
    """Turns that `normalize_rows` has accepted, in the words of `messages`, up to the last answer."""
    messages = [
        {"role": ROLES[turn.get("role", turn.get("from"))], "content": turn.get("content", turn.get("value")).strip()}
        for turn in turns
    ]
    while messages[-1]["role"] != "assistant":
        messages.pop()
    return messages
