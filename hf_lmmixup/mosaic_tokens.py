"""Counting: how many tokens each row has, and which rows may share a mosaic. Done once, for all epochs.

One row, ``{"prompt": "Name a prime.", "completion": "7"}``, becomes tokens=5 with a BERT tokenizer, words=3, group=0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from hf_lmmixup.mosaic_plan import RowNumbers
from hf_lmmixup.mosaic_rows import Item, RowForm, RowReader, word_count
from hf_lmmixup.records import Progress


DESCRIBED_ROWS = 10_000
"""Rows whose tokens are counted in one call of the tokenizer."""

SAMPLED_TEXTS = 256
"""Texts on which counting by words is checked, spread evenly; fewer texts than these are simply encoded."""

CUT = "\0"
"""Stands where a text may be cut; a text that holds it is counted whole."""

BLANK = r"([\s\pZ\x0b\x1c-\x1f\x{85}])"
"""Between a blank and a space nothing is cut: a byte-level BPE may take several blanks together."""

END_OF_WORD = r"([A-Za-z0-9])([\t\n\r !-&(-/:-@\[-`{-~])"
"""A letter or digit before a blank or a mark; not before an apostrophe, which some tokenizers keep with the word."""

MOST_WORDS = 2_000_000
"""Distinct pieces of text whose tokens are remembered, some 200 MB."""

ENCODED_PIECES = 1024
"""Pieces that are encoded at a time; the encodings of more would only wait in memory."""


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
        self._known: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special tokens.

        Many texts are cut into words, and each distinct one is counted once, if a sample shows that this gives the
        tokenizer's own counts. It does for WordPiece and byte-level BPE, which cut there themselves.
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
                return [
                    len(encoding)
                    for start in range(0, len(texts), ENCODED_PIECES)
                    for encoding in backend.encode_batch_fast(
                        list(texts[start : start + ENCODED_PIECES]), add_special_tokens=False
                    )
                ]
        return [len(ids) for ids in self.tokenizer(list(texts), verbose=False, **plain)["input_ids"]]

    def _by_words(self, texts: Sequence[str]) -> list[int]:
        """Sums over the words of each text, the space before a word being part of it."""
        whole = [place for place, text in enumerate(texts) if CUT in text]
        column = pa.array([text if CUT not in text else "" for text in texts], pa.large_string())
        words = pc.split_pattern(_marked(column), CUT)
        distinct = words.values.dictionary_encode()
        counts = self._of_words(distinct.dictionary)[distinct.indices.to_numpy()]
        sums = np.add.reduceat(counts, words.offsets.to_numpy()[:-1])
        sums[whole] = self._encode([texts[place] for place in whole])
        return sums.tolist()

    def _of_words(self, words: pa.Array) -> np.ndarray:
        """Tokens of each distinct word, marks at its end counted apart."""
        parts = pc.split_pattern(pc.replace_substring_regex(words, END_OF_WORD, rf"\1{CUT}\2"), CUT)
        distinct = parts.values.dictionary_encode()
        pieces = distinct.dictionary.to_pylist()
        if len(self._known) > MOST_WORDS:
            self._known.clear()
        unknown = [piece for piece in pieces if piece not in self._known]
        self._known.update(zip(unknown, self._encode(unknown), strict=True))
        counts = np.fromiter(map(self._known.__getitem__, pieces), dtype=np.int64, count=len(pieces))
        return np.add.reduceat(counts[distinct.indices.to_numpy()], parts.offsets.to_numpy()[:-1])

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


def _marked(texts: pa.Array) -> pa.Array:
    """Texts with a `CUT` before every space that no other blank precedes."""
    marked = pc.replace_substring(texts, " ", f"{CUT} ")
    mixed = pc.match_substring_regex(texts, f"{BLANK} ")
    healed = pc.replace_substring_regex(marked.filter(mixed), BLANK + CUT, r"\1")
    return pc.replace_with_mask(marked, mixed, healed)


def describe(items: Sequence[Item], counter: TokenCounter | None, *, words: bool = True) -> dict[str, Any]:
    """What planning needs of rows: tokens, words of the first instruction, turns (0: not to be joined), system.

    Args:
        items: The rows.
        counter: Counts tokens; `None` leaves them 0.
        words: Whether to count words; else they are left 0.
    """
    tokens = [0] * len(items)
    if counter is not None and items:
        counts = np.asarray(
            counter([text for item in items for text in (*item.users, *item.assistants)]), dtype=np.int64
        )
        ends = np.cumsum([2 * len(item.users) for item in items])
        tokens = np.diff(np.concatenate([[0], np.cumsum(counts)])[ends], prepend=0).tolist()
    return {
        "tokens": tokens,
        "words": [word_count(item) for item in items] if words else [0] * len(items),
        "turns": [len(item.users) for item in items],
        "system": [item.system for item in items],
    }


def describe_all(
    reader: RowReader,
    counter: TokenCounter | None,
    num_proc: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`describe` for all rows, in one process or several; without words where the reader has them at hand."""
    told, words = progress or (lambda *_: None), reader.words is None
    told("counting tokens", 0, len(reader))
    if num_proc is not None and num_proc > 1:
        described = Dataset.from_dict({"row": range(len(reader))}).map(
            lambda rows: describe(reader.take(rows)[0], counter, words=words),
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
        parts.append(describe(items, counter, words=words))
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
    words: Sequence[int] | None,
) -> RowNumbers:
    """Put rows that may be joined into groups: same number of turns, same system message, same kept value.

    Args:
        described: The columns of `describe`, for all rows.
        form: Their form.
        counter: Counts what the chat template adds.
        kept: The column that is kept apart.
        budgeted: Whether tokens matter.
        words: Words of each row, if they are not among those columns.
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
        words=described["words"] if words is None else words,
        groups=np.asarray(groups, dtype=np.int64),
        turns=[turns for turns, _, _ in known],
        overhead=overhead,
    )


def checked_counts(counts: Sequence[int], rows: int) -> np.ndarray:
    """Token counts that were given instead of counted.

    Raises:
        ValueError: If they are not one whole number of 0 or more per row.
    """
    array = np.asarray(counts)
    if array.shape != (rows,) or array.dtype.kind not in "iu" or (rows and array.min() < 0):
        raise ValueError(f"token_counts must hold {rows} whole numbers of 0 or more, not {array.dtype} {array.shape}.")
    return array
