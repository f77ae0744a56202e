"""Counting: how many tokens each row has, and which rows may share a mosaic. Done once, for all epochs.

One row, ``{"prompt": "Name a prime.", "completion": "7"}``, becomes tokens=5 with a BERT tokenizer, words=3, group=0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value

from hf_lmmixup.mosaic_plan import RowNumbers
from hf_lmmixup.mosaic_rows import Item, RowForm, RowReader


DESCRIBED_ROWS = 10_000
"""Rows whose tokens are counted in one call of the tokenizer."""

SAMPLED_TEXTS = 256
"""Texts on which counting by words is checked, spread evenly; fewer texts than these are simply encoded."""

MIXED_BLANKS = ("  ", "\n ", "\t ", "\r ")
"""Where these occur, a byte-level BPE may take several blanks together, the space among them."""

LAST_MARKS = ".,!?;:)\"'"
"""Marks at the end of a word; tokenizers part them from a letter or digit, so fewer distinct words are counted."""

MOST_WORDS = 2_000_000
"""Distinct words whose tokens are remembered, some 200 MB."""


class TokenCounter:
    """Counts tokens as training will see them.

    Args:
        tokenizer: A `transformers` tokenizer or its name; `None` estimates one token for two bytes, which is more than
            tokenizers of today need for the sentences of a mosaic.

    Raises:
        ImportError: If a name is given and the `train` extra is missing.
        ValueError: If there is no tokenizer of that name.
    """

    def __init__(self, tokenizer: Any) -> None:
        if isinstance(tokenizer, str):
            try:
                from transformers import AutoTokenizer
            except ImportError as error:
                raise ImportError('Loading a tokenizer by name needs: pip install "hf-lmmixup[train]".') from error
            try:
                tokenizer = AutoTokenizer.from_pretrained(tokenizer)
            except OSError as error:
                raise ValueError(f"No tokenizer at {tokenizer!r}: no model folder, and no Hub id in reach.") from error
        self.tokenizer = tokenizer
        self._separable: bool | None = None
        self._words: tuple[dict[str, int], dict[str, int]] = ({}, {})

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special tokens.

        Many texts are counted word by word, each distinct word once, if a sample shows that this gives the tokenizer's
        own counts. It does for WordPiece and byte-level BPE, which never join what single spaces part.
        """
        if self.tokenizer is None:
            return [len(text.encode()) // 2 + 1 for text in texts]
        if len(texts) < SAMPLED_TEXTS:
            return self._encode(texts)
        if self._separable is None:
            sample = texts[:: len(texts) // SAMPLED_TEXTS]
            self._separable = self._by_words(sample) == self._encode(sample)
        return self._by_words(texts) if self._separable else self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        plain = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if hasattr(backend, "encode_batch_fast"):
            self.tokenizer([""], **plain)  # resets the truncation and padding of an earlier call
            if backend.truncation is None and backend.padding is None:
                return [len(encoding) for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [len(ids) for ids in self.tokenizer(list(texts), verbose=False, **plain)["input_ids"]]

    def _by_words(self, texts: Sequence[str]) -> list[int]:
        """Sums over words; a text in which spaces follow other blanks, such as code, is counted whole.

        Texts are cut twice instead of kept cut: a million lists keep the garbage collector busy.
        """
        first, later = self._words
        if len(first) + len(later) > MOST_WORDS:
            first.clear()
            later.clear()
        mixed = [any(blanks in text for blanks in MIXED_BLANKS) for text in texts]
        words: set[str] = set()
        openers: set[str] = set()
        for text, whole in zip(texts, mixed, strict=True):
            if not whole:
                parts = text.split(" ")
                openers.add(parts[0])
                words.update(parts)
        self._learn(first, openers, "")
        self._learn(later, words, " ")
        counts = iter(self._encode([text for text, whole in zip(texts, mixed, strict=True) if whole]))
        return [next(counts) if whole else self._sum(text) for text, whole in zip(texts, mixed, strict=True)]

    def _sum(self, text: str) -> int:
        first, later = self._words
        parts = text.split(" ")
        return first[parts[0]] - later[parts[0]] + sum(map(later.__getitem__, parts))

    def _learn(self, known: dict[str, int], words: set[str], before: str) -> None:
        """Count words that are not known yet, the marks at their ends apart."""
        unknown = list(words.difference(known))
        stems = [_stem(word) for word in unknown]
        tails = [word[len(stem) :] for word, stem in zip(unknown, stems, strict=True)]
        heads = [before + stem for stem in stems]
        pieces = list({*heads, *tails})
        counts = dict(zip(pieces, self._encode(pieces), strict=True))
        known.update(
            (word, counts[head] + counts[tail]) for word, head, tail in zip(unknown, heads, tails, strict=True)
        )

    def overhead(self, turns: int, *, chat: bool, system: bool) -> int:
        """Tokens that the chat template, or the special tokens of a text row, add to the texts of one example.

        Raises:
            ValueError: If conversations are counted with a tokenizer that has no chat template.
        """
        if self.tokenizer is None:
            return 8 * (2 * turns + system) if chat else 2
        if not chat:
            return len(self.tokenizer("")["input_ids"]) + 1  # the end-of-sequence token that TRL adds
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError("The tokenizer has no chat template, so conversations cannot be counted. Set one first.")
        spoken = [{"role": role, "content": "a"} for _ in range(turns) for role in ("user", "assistant")]
        messages = ([{"role": "system", "content": "a"}] if system else []) + spoken
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return self([rendered])[0] - len(messages) * self(["a"])[0]


def _stem(word: str) -> str:
    """A word without the marks at its end; the whole word where they do not follow a letter or digit."""
    stem = word.rstrip(LAST_MARKS)
    return stem if stem[-1:].isalnum() else word


def describe(items: Sequence[Item], counter: TokenCounter | None) -> dict[str, list[Any]]:
    """What planning needs of rows: tokens, words of the first instruction, turns (0: not to be joined), system.

    Args:
        items: The rows.
        counter: Counts tokens; `None` leaves them 0.
    """
    tokens = [0] * len(items)
    if counter is not None:
        texts = [text for item in items for text in (*item.users, *item.assistants)]
        counts, start = counter(texts), 0
        for place, item in enumerate(items):
            stop = start + len(item.users) + len(item.assistants)
            tokens[place] = sum(counts[start:stop])
            start = stop
    return {
        "tokens": tokens,
        "words": [len(item.users[0].split()) if item.users else 0 for item in items],
        "turns": [len(item.users) for item in items],
        "system": [item.system for item in items],
    }


def describe_all(
    reader: RowReader,
    counter: TokenCounter | None,
    num_proc: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, list[Any]]:
    """`describe` for all rows, in one process or several."""
    told = progress or (lambda *_: None)
    told("counting tokens", 0, len(reader))
    if num_proc is not None and num_proc > 1:
        described = Dataset.from_dict({"row": range(len(reader))}).map(
            lambda rows: describe(reader.take(rows)[0], counter),
            batched=True,
            batch_size=max(1, min(DESCRIBED_ROWS, math.ceil(len(reader) / num_proc))),
            num_proc=min(num_proc, len(reader)),
            input_columns=["row"],
            remove_columns=["row"],
            load_from_cache_file=False,
            desc="Counting tokens",
        )
        return {name: described[name][:] for name in described.column_names}
    parts = []
    for items in reader.blocks(DESCRIBED_ROWS):
        parts.append(describe(items, counter))
        told("counting tokens", sum(len(part["tokens"]) for part in parts), len(reader))
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


@dataclass(frozen=True)
class KeptColumn:
    """A column whose values never meet in one mosaic, as `MosaicConfig.keep_apart` describes it.

    Attributes:
        name: The column.
        values: (n,) its values.
        feature: Its type in a mosaic.
    """

    name: str
    values: Sequence[Any]
    feature: Value

    @classmethod
    def find(cls, name: str, values: Sequence[Any], features: Features | None) -> "KeptColumn":
        """Look a column up.

        Raises:
            ValueError: If it holds neither text, truth values nor numbers.
        """
        for kind, dtype in ((bool, "bool"), (int, "int64"), (str, "string"), (float, "float64")):
            if all(value is None or isinstance(value, kind) for value in values):
                known = features.get(name) if features is not None else None
                kept = known if dtype != "float64" and isinstance(known, Value) else Value(dtype)
                return cls(name, values, kept)
        raise ValueError(f"keep_apart={name!r} needs a column of text, truth values or numbers.")

    @property
    def averaged(self) -> bool:
        """Whether a mosaic gets the mean of its rows; else they all have one value."""
        return self.feature.dtype == "float64"

    def groups(self) -> list[Any]:
        """(n,) what rows must have in common: the value, or the half of the column that it lies in."""
        if not self.averaged:
            return list(self.values)
        known = [value for value in self.values if value is not None and not math.isnan(value)]
        median = float(np.median(known)) if known else 0.0
        return [None if value is None or math.isnan(value) else value >= median for value in self.values]

    def of(self, rows: Sequence[int]) -> Any:
        """The value of a mosaic of these rows."""
        first = self.values[rows[0]]
        return first if first is None or not self.averaged else sum(self.values[row] for row in rows) / len(rows)


def row_numbers(
    described: Mapping[str, Sequence[Any]],
    form: RowForm,
    counter: TokenCounter,
    kept: KeptColumn | None,
    *,
    budgeted: bool,
) -> RowNumbers:
    """Put rows that may be joined into groups: same number of turns, same system message, same kept value.

    Args:
        described: The columns of `describe`, for all rows.
        form: Their form.
        counter: Counts what the chat template adds.
        kept: The column that is kept apart.
        budgeted: Whether tokens matter.
    """
    apart = [None] * len(described["turns"]) if kept is None else kept.groups()
    known: dict[tuple[Any, ...], int] = {}
    groups = [
        known.setdefault(key, len(known)) if key[0] else -1
        for key in zip(described["turns"], described["system"], apart, strict=True)
    ]
    overhead: list[int] = []
    for turns, system, _ in known:
        extra = counter.overhead(turns, chat=form.chat, system=system is not None) if budgeted else 0
        overhead.append(extra + (counter([system])[0] if system and budgeted else 0))
    return RowNumbers(
        tokens=np.asarray(described["tokens"], dtype=np.int64),
        words=np.asarray(described["words"], dtype=np.int64),
        groups=np.asarray(groups, dtype=np.int64),
        turns=[turns for turns, _, _ in known],
        overhead=overhead,
    )


def checked_counts(counts: Sequence[int], rows: int) -> list[int]:
    """Token counts that were given instead of counted.

    Raises:
        ValueError: If they are not one whole number of 0 or more per row.
    """
    array = np.asarray(counts)
    if array.shape != (rows,) or array.dtype.kind not in "iu" or (rows and array.min() < 0):
        raise ValueError(f"token_counts must hold {rows} whole numbers of 0 or more, not {array.dtype} {array.shape}.")
    return array.tolist()
