"""Rows of any form, seen as instructions and answers, and what a mosaic pass has to know about each of them.

Text rows (prompt/completion or Alpaca) have one turn; conversations have an optional system message and any number of
turns. Only rows with the same system message and the same number of turns share a mosaic, so turn t of the mosaic is
made of the turns t of its rows. One row::

    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"},
                  {"role": "assistant", "content": "Scattering."}]}
    -> Item(system="Be brief.", users=("Why is the sky blue?",), assistants=("Scattering.",), raw=None)

A conversation of another shape (tool calls, images, two user messages in a row) is never joined: it passes unchanged.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value

from hf_lmmixup.loading import ROLES, detect_form
from hf_lmmixup.records import row_id


MESSAGE = {"role": Value("string"), "content": Value("string")}

UNSUPPORTED = ("tools", "image", "images", "chat_template_kwargs")
"""Columns that change how TRL renders a single row, so rows that have them cannot be joined."""


class Item(NamedTuple):
    """One row as it enters a mosaic.

    Attributes:
        system: Its system message.
        users: What is asked, turn by turn.
        assistants: The answers, turn by turn.
        raw: The row's own columns if it cannot be joined; the other fields are then empty.
    """

    system: str | None
    users: tuple[str, ...]
    assistants: tuple[str, ...]
    raw: dict[str, Any] | None = None

    @property
    def identifier(self) -> str:
        """Content hash of the row, whether it can be joined or not."""
        if self.raw is not None:
            return row_id(json.dumps(self.raw, sort_keys=True, default=str), "")
        return conversation_id(self.system, self.users, self.assistants)


def conversation_id(system: str | None, users: Sequence[str], assistants: Sequence[str]) -> str:
    """Content hash; that of `records.row_id` for one turn without a system message."""
    if system is None and len(users) == 1:
        return row_id(users[0], assistants[0])
    return row_id(json.dumps([system, users]), json.dumps(assistants))


def word_count(item: Item) -> int:
    """Words of the first instruction; 0 if the row cannot be joined."""
    return len(item.users[0].split()) if item.users else 0


class HeldWords(Sequence[int]):
    """Word counts of rows in memory, each made when it is asked for: two of five masks compare them, nothing else."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: Any) -> Any:
        return word_count(self.items[row])


class RowForm:
    """How the rows of one dataset are read and how its mosaics are written.

    Args:
        row: A first row, or all columns with any values.
        features: The dataset's features where known; message columns keep theirs.

    Attributes:
        known: The `features`.

    Raises:
        ValueError: If the columns have none of the accepted forms.
    """

    def __init__(self, row: Mapping[str, Any], features: Features | None = None) -> None:
        if found := [column for column in UNSUPPORTED if row.get(column) is not None]:
            raise ValueError(
                f"Rows with the column {found[0]!r} cannot be joined into mosaics. Remove the column first."
            )
        self.known = features
        self.name = detect_form(dict(row), "The dataset")
        self.chat = self.name in ("messages", "ShareGPT")
        if self.name == "prompt/completion":
            self.chat = not isinstance(row["prompt"], str)
        self.needed = {
            "Alpaca": ("instruction", "input", "output"),
            "prompt/completion": ("prompt", "completion"),
            "messages": ("messages",),
            "ShareGPT": ("conversations",),
        }[self.name]
        self.columns = ("messages",) if self.name in ("messages", "ShareGPT") else ("prompt", "completion")
        own = {column: features[column] for column in self.columns if features is not None and column in features}
        plain: Any = List(MESSAGE) if self.chat else Value("string")
        self.features = {column: own.get(column, plain) for column in self.columns}

    def read(self, batch: Mapping[str, Sequence[Any]]) -> list[Item]:
        """The rows of a batch of columns, in their order.

        Raises:
            ValueError: If a row has a value in one of the columns that change how TRL renders it.
        """
        for column in UNSUPPORTED:
            if any(value is not None for value in batch.get(column) or ()):
                raise ValueError(f"Rows with a value in {column!r} cannot be joined into mosaics. Remove that column.")
        if self.name == "Alpaca":
            contexts = batch.get("input") or [None] * len(batch["output"])
            joined = zip(batch["instruction"], contexts, strict=True)
            return _read_pairs([f"{task}\n\n{more}" if more else task for task, more in joined], batch["output"])
        if self.name == "prompt/completion" and not self.chat:
            return _read_pairs(batch["prompt"], batch["completion"])
        if self.name == "prompt/completion":
            talks = zip(batch["prompt"], batch["completion"], strict=True)
            return [_read_conversation(prompt, completion, self) for prompt, completion in talks]
        conversations = batch[self.needed[0]]
        if self.name == "ShareGPT":
            conversations = [[_renamed(turn) for turn in turns or ()] for turns in conversations]
        return [_read_conversation(turns, [], self) for turns in conversations]

    def write(self, system: str | None, users: Sequence[str], assistants: Sequence[str]) -> dict[str, Any]:
        """The columns of one example."""
        if not self.chat:
            return {"prompt": users[0], "completion": assistants[0]}
        messages = [] if system is None else [{"role": "system", "content": system}]
        for user, assistant in zip(users, assistants, strict=True):
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        if self.columns == ("messages",):
            return {"messages": messages}
        return {"prompt": messages[:-1], "completion": messages[-1:]}


def _read_pairs(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Item]:
    if {*map(type, prompts), *map(type, completions)} == {str}:
        fields = zip(repeat(None), zip(prompts), zip(completions), repeat(None))
        return list(map(tuple.__new__, repeat(Item), fields))  # what `Item` does, without a call of Python for each
    pairs = zip(prompts, completions, strict=True)
    return [
        Item(None, (prompt,), (completion,))
        if type(prompt) is type(completion) is str
        else Item(None, (), (), {"prompt": prompt, "completion": completion})
        for prompt, completion in pairs
    ]


def _read_conversation(messages: list[Any], completion: list[Any], form: RowForm) -> Item:
    turns = [_read_turn(turn) for turn in [*(messages or ()), *(completion or ())]]
    system = turns[0][1] if turns and turns[0] and turns[0][0] == "system" else None
    spoken = turns[system is not None :]
    roles = [turn[0] if turn else None for turn in spoken]
    regular = bool(roles) and roles == ["user", "assistant"] * (len(roles) // 2)
    if regular and (form.columns == ("messages",) or len(completion) == 1):
        texts = [turn[1] for turn in spoken if turn]
        return Item(system, tuple(texts[::2]), tuple(texts[1::2]))
    raw = {"messages": messages} if form.columns == ("messages",) else {"prompt": messages, "completion": completion}
    return Item(None, (), (), raw)


def _renamed(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A ShareGPT turn with the words of `messages`."""
    speaker = turn.get("from")
    return {"role": ROLES.get(speaker or "", speaker), "content": turn.get("value")}


def _read_turn(turn: Any) -> tuple[str, str] | None:
    """Role and text of a plain turn; `None` for one that carries anything else."""
    if not isinstance(turn, Mapping):
        return None
    role, content = turn.get("role"), turn.get("content")
    more = any(value is not None for key, value in turn.items() if key not in ("role", "content"))
    if more or role not in ("system", "user", "assistant") or not isinstance(content, str):
        return None
    return role, content


def answers_of(example: Mapping[str, Any]) -> list[str]:
    """What the assistant says in an example of any form, turn by turn."""
    if isinstance(example.get("completion"), str):
        return [example["completion"]]
    messages = example["messages"] if "messages" in example else [*example["prompt"], *example["completion"]]
    return [message["content"] for message in messages if message["role"] == "assistant"]


class RowReader:
    """Random access to rows: from memory while they are small, else from Arrow.

    Args:
        rows: A dataset, or the columns of a batch.
        form: Their form.
    """

    HELD_BYTES = 256 * 2**20
    """Texts up to this size are kept as Python objects: a look-up costs nothing, a gather from Arrow 4 us a row."""

    def __init__(self, rows: Dataset | Mapping[str, Sequence[Any]], form: RowForm) -> None:
        self.form = form
        self._held: tuple[list[Item], list[str]] | None = None
        if not isinstance(rows, Dataset):
            self._held = self._read(rows)
            return
        self._dataset = rows
        self._columns = [column for column in (*form.needed, *UNSUPPORTED, "id") if column in rows.column_names]
        if rows.data.nbytes <= self.HELD_BYTES:
            self._held = self._read({column: rows[column][:] for column in self._columns})

    @property
    def words(self) -> Sequence[int] | None:
        """Words of the first instruction of each row, if the rows are in memory."""
        return HeldWords(self._held[0]) if self._held is not None else None

    def __len__(self) -> int:
        return len(self._held[0]) if self._held is not None else len(self._dataset)

    def take(self, indices: Sequence[int]) -> tuple[list[Item], list[str]]:
        """Rows and their ids: the column `id` where it holds text, else the hash of the content."""
        if self._held is None:
            batch = self._dataset.select_columns(self._columns)[list(indices)]
            return self._read(batch)
        items, ids = self._held
        if len(indices) < 2:
            return [items[index] for index in indices], [ids[index] for index in indices]
        chosen = itemgetter(*indices)
        return list(chosen(items)), list(chosen(ids))

    def blocks(self, size: int) -> Iterator[list[Item]]:
        """All rows, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.take(range(start, min(start + size, len(self))))[0]

    def _read(self, batch: Mapping[str, Sequence[Any]]) -> tuple[list[Item], list[str]]:
        items = self.form.read(batch)
        given = batch.get("id") or [None] * len(items)
        if set(map(type, given)) == {str} and all(given):
            return items, list(given)
        named = zip(given, items, strict=True)
        return items, [name if name and type(name) is str else item.identifier for name, item in named]
