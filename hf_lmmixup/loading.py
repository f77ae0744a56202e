"""Raw rows of any common form and file become the package's record: `id`, `prompt`, `completion`, `source`.

Four forms are recognized by their columns:

| form | columns | becomes |
|---|---|---|
| prompt/completion | `prompt`, `completion` (text or messages) | as they are |
| Alpaca | `instruction`, `output`, optional `input` | instruction and input joined by a blank line |
| messages | `messages`: `[{"role": "user", "content": ...}, ...]` | see below |
| ShareGPT | `conversations`: `[{"from": "human", "value": ...}, ...]` | see below |

A pile may hold rows of several forms; one that has the columns of two is read as the first row is.

A conversation stays whole: its last assistant turn is the completion and everything before it is the prompt. A prompt
of one user turn is that turn's text; a longer one is written as a transcript, `User: ...`, `Assistant: ...`. Of a turn
its role and its text are read; one that calls tools says more than that, so its row is a reject.

Nothing is lost silently. A row that cannot be used is counted with its place and its reason, for example
`{"pile.jsonl:17": "invalid UTF-8"}`. Rows with equal texts are one row; the later ones are counted as duplicates.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from hf_lmmixup.inputs import RawRow, raw_rows
from hf_lmmixup.jsonl import NOT_JSON, NOT_OBJECT, Reject
from hf_lmmixup.records import LOADED, Outcome, row_id
from hf_lmmixup.tables import dataset_of


FORMS = {
    "messages": ("messages",),
    "ShareGPT": ("conversations",),
    "prompt/completion": ("prompt", "completion"),
    "Alpaca": ("instruction", "output"),
}
"""Form -> the columns that identify it, tried in this order."""

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
"""Spellings of a speaker in ShareGPT and messages data -> the role in this package."""

CALLS = ("tool_calls", "function_call")
"""Fields of a turn that calls tools."""

MAX_TEXT = 1_000_000
"""Longest prompt or completion in characters; a longer one is a reject, not an instruction."""

DUPLICATE = "duplicate"
"""Reason of a row with the texts of an earlier one."""

FLUSH_ROWS = 20_000


@dataclass(frozen=True)
class _Unusable(Exception):
    reason: str


def load_rows(source: str | Path, *, limit: int | None = None, split: str = "train") -> Outcome:
    """Read raw instruction data from wherever it is.

    Args:
        source: A `.jsonl`, `.json` or `.parquet` file, a folder written by `Dataset.save_to_disk`, a folder that
            `load_dataset` understands, or a Hub dataset id, as `owner/name`, `owner/name:configuration` or
            `owner/name:configuration:split`, where the configuration may be left empty.
        limit: Read at most this many raw rows.
        split: Which split to take where the source has several and its name says none.

    Returns:
        The usable rows with the columns of `records.LOADED`, in their order, and the place and reason of every reject.

    Raises:
        FileNotFoundError: If there is no such file or folder, and the Hub has no such dataset or cannot be reached.
        ValueError: If the file is empty, has none of the four forms, or no row of it can be used.
    """
    outcome = normalize_rows(raw_rows(source, split), name=Path(str(source)).name, limit=limit)
    if not len(outcome.dataset):
        reasons = sorted(set(outcome.dropped.values()))
        form = " Expected one JSON object a line, or in a .json file one array of them."
        raise ValueError(
            f"{source} holds no usable row: {len(outcome.dropped)} read, rejected for {reasons}."
            + form * (set(reasons) <= {NOT_JSON, NOT_OBJECT})
            if reasons
            else f"{source} is empty. Give a file with at least one instruction pair."
        )
    return outcome


def normalize_rows(rows: Iterable[RawRow], *, name: str, limit: int | None = None) -> Outcome:
    """Turn raw rows into records.

    Args:
        rows: Pairs of a place (for example `pile.jsonl:17`) and a raw row, or the reject that stands for it.
        name: The `source` of rows that carry none.
        limit: Take at most this many raw rows.

    Returns:
        The records, and place -> reason for every raw row that is not among them.

    Raises:
        ValueError: If the first readable row has none of the known forms.
    """
    dropped: dict[str, str] = {}
    seen: set[str] = set()
    tables: list[pa.Table] = []
    records: list[str] = []  # one after the other: id, prompt, completion, source, id, ...
    form: str | None = None
    for number, (place, raw) in enumerate(rows):
        if limit is not None and number >= limit:
            break
        if isinstance(raw, Reject):
            dropped[place] = raw.reason
            continue
        form = form or detect_form(raw, name)
        try:
            prompt, completion = _read_row(raw, _form_of(raw, form))
        except _Unusable as error:
            dropped[place] = error.reason
            continue
        identifier = row_id(prompt, completion)
        if identifier in seen:
            dropped[place] = DUPLICATE
            continue
        seen.add(identifier)
        records += (identifier, prompt, completion, _source(raw, name))
        if len(records) >= FLUSH_ROWS * len(LOADED):
            tables.append(_table(records))
            records = []
    tables.append(_table(records))
    return Outcome(dataset_of(pa.concat_tables(tables)), dropped)


def _table(records: list[str]) -> pa.Table:
    columns = [pa.array(records[place :: len(LOADED)], pa.string()) for place in range(len(LOADED))]
    return pa.table(columns, schema=LOADED.arrow_schema)


def detect_form(row: dict[str, Any], name: str) -> str:
    """Which of the four forms a raw row has.

    Raises:
        ValueError: If it has none; the message names the columns found and the forms accepted.
    """
    for form, needed in FORMS.items():
        if all(column in row for column in needed):
            return form
    accepted = "; ".join(f"{form} ({', '.join(needed)})" for form, needed in FORMS.items())
    raise ValueError(f"{name} has the columns {sorted(row)}, which is none of the accepted forms: {accepted}.")


def _form_of(row: dict[str, Any], form: str) -> str:
    """The form of a row: that of the first one, unless it lacks a column of it and has those of another form."""
    if not _lacks(row, form):
        return form
    return next((other for other in FORMS if not _lacks(row, other)), form)


def _lacks(row: dict[str, Any], form: str) -> bool:
    for column in FORMS[form]:  # each row passes here, and `any` takes several times as long
        if row.get(column) is None:
            return True
    return False


def _read_row(row: dict[str, Any], form: str) -> tuple[str, str]:
    for column in FORMS[form]:
        if row.get(column) is None:
            raise _Unusable(f"no {column}")
    if form == "Alpaca":
        context = row.get("input")
        prompt = _text(row["instruction"], "instruction")
        if context is not None and _text(context, "input"):
            prompt = f"{prompt}\n\n{_text(context, 'input')}".strip()
        completion = _text(row["output"], "output")
    elif form == "prompt/completion":
        prompt, completion = _side(row["prompt"], "prompt"), _side(row["completion"], "completion")
    else:
        prompt, completion = _conversation(row[FORMS[form][0]])
    if not prompt:
        raise _Unusable("empty prompt")
    if not completion:
        raise _Unusable("empty completion")
    if len(prompt) > MAX_TEXT or len(completion) > MAX_TEXT:
        raise _Unusable(f"text longer than {MAX_TEXT} characters")
    return prompt, completion


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise _Unusable(f"{column} is not text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _Unusable(f"{column} holds a lone surrogate") from None
    return value.strip()


def _side(value: Any, column: str) -> str:
    if isinstance(value, str):
        return _text(value, column)
    if not isinstance(value, list):
        raise _Unusable(f"{column} is neither text nor a list of turns")
    turns = _turns(value)
    return turns[0][1] if len(turns) == 1 else _transcript(turns)


def _conversation(value: Any) -> tuple[str, str]:
    turns = _turns(value)
    while turns and turns[-1][0] != "assistant":
        turns = turns[:-1]
    if not turns:
        raise _Unusable("no assistant turn")
    before = turns[:-1]
    prompt = before[0][1] if len(before) == 1 and before[0][0] == "user" else _transcript(before)
    return prompt, turns[-1][1]


def _turns(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise _Unusable("conversation is not a list of turns")
    turns = []
    for turn in value:
        if not isinstance(turn, dict):
            raise _Unusable("turn is not an object")
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role not in ROLES:
            raise _Unusable("turn without a known role")
        if any(turn.get(name) for name in CALLS):
            raise _Unusable("turn calls tools")
        text = _text(turn.get("content", turn.get("value")), "turn")
        if text or ROLES[role] != "system":  # many data sets have an empty one in each row
            turns.append((ROLES[role], text))
    return turns


def _transcript(turns: list[tuple[str, str]]) -> str:
    return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in turns)


def _source(row: dict[str, Any], name: str) -> str:
    source = row.get("source")
    return source if isinstance(source, str) and 0 < len(source) <= 200 and source.isprintable() else name
