"""The words and numbers that every stage shares: task types, ratings, row ids and the columns of each stage.

The only record in this package is a row of a `datasets.Dataset`. A stage is a function that takes a dataset, returns
an `Outcome` (the rows it passes on and, by row id, the reason for every row it dropped) and declares its columns here.

One row after loading::

    {"id": "5f1d0c8f1f0b7a52", "prompt": "why sky blue", "completion": "scattering", "source": "dolly"}
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from json.encoder import encode_basestring_ascii

from datasets import Dataset, Features, List, Value


RATING_AXES = ("rarity", "complexity", "informativeness", "overall")
"""The four judgements of a rating, 1 to 10 each (arXiv 2510.20449, rating rubric)."""

SCORES = (0, 1, 2, 3, 4, 5)
"""The classes of a score: the overall rating clipped to 4..9, minus 4."""

HIGH_SCORE = 4
"""Rows with at least this score are kept as they are; the others are clustered and distilled (arXiv 2510.20449)."""

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English under byte-pair tokenizers, for estimates; costs take bytes for characters."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the units of it that are done and the units in all (0: unknown)."""

PLAIN = bytes(range(32, 127)) + b"\n"
PLAIN_LENGTH = 200
"""Characters whose JSON needs no look at each of them, and from how many of them on that is faster."""


class TaskType(StrEnum):
    """The five kinds of text in MIXTURE: question-answer, multiple choice, true-false, category-statement, prose."""

    QA = "qa"
    MCQ = "mcq"
    TFQ = "tfq"
    CS = "cs"
    PARA = "para"

    @classmethod
    def _missing_(cls, value: object) -> "TaskType":
        raise ValueError(f"Unknown task type {value!r}. Expected one of {[t.value for t in cls]}.")


@dataclass(frozen=True)
class Rating:
    """Four integer judgements of one row, each from 1 (poor) to 10 (excellent).

    Raises:
        ValueError: If a judgement is not an integer in 1..10 (a `bool` is not one).
    """

    rarity: int
    complexity: int
    informativeness: int
    overall: int

    def __post_init__(self) -> None:
        for axis in RATING_AXES:
            value = getattr(self, axis)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10:
                raise ValueError(f"Rating {axis}={value!r} is not an integer from 1 to 10.")

    @property
    def score(self) -> int:
        """The overall judgement compressed to 0..5: `min(9, max(4, overall)) - 4` (arXiv 2510.20449)."""
        return min(9, max(4, self.overall)) - 4


@dataclass(frozen=True)
class Distillation:
    """A well-formed completion of the distiller: what stood in `<think>` and what stood in `<answer>`."""

    reasoning: str
    answer: str


@dataclass
class Outcome:
    """What a stage returns.

    Attributes:
        dataset: The rows that go on.
        dropped: Row id -> reason, for every input row that does not.
    """

    dataset: Dataset
    dropped: dict[str, str] = field(default_factory=dict)

    def columns(self, *names: str) -> Dataset:
        """The rows that go on, with some of their columns only."""
        return self.dataset.select_columns(list(names))


def row_id(prompt: str, completion: str) -> str:
    """Content hash of a row: the first 16 hex digits of the SHA-256 of its two texts.

    Equal rows have equal ids wherever and in whatever order they were loaded. JSON separates the two texts, so
    ("ab", "c") and ("a", "bc") differ.
    """
    return hashlib.sha256(b"[%b,%b]" % (quoted(prompt), quoted(completion))).hexdigest()[:16]


def quoted(text: str) -> bytes:
    """A text as a JSON string in ASCII; a long plain one by `bytes.replace`, which is twice as fast as `json`."""
    if len(text) > PLAIN_LENGTH and text.isascii() and not (raw := text.encode()).translate(None, PLAIN):
        return b'"%b"' % raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    return encode_basestring_ascii(text).encode()


def row_seed(seed: int, identifier: str) -> int:
    """A 63-bit seed for one row, the same in any shard, batch or worker."""
    digest = hashlib.sha256(f"{seed}:{identifier}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def pair_text(prompt: str, completion: str) -> str:
    """One instruction pair as a single text: the form in which pairs are embedded, rated and distilled."""
    return f"Q: {prompt}\nA: {completion}"


RATING_FEATURE = {axis: Value("int32") for axis in RATING_AXES}

LOADED = Features(
    {"id": Value("string"), "prompt": Value("string"), "completion": Value("string"), "source": Value("string")}
)
RATED = Features({**LOADED, "rating": RATING_FEATURE, "score": Value("int32"), "rating_error": Value("string")})
CLUSTERED = Features({**RATED, "cluster_id": Value("int64")})
DISTILLED = Features(
    {
        "id": Value("string"),
        "prompt": Value("string"),
        "completion": Value("string"),
        "reasoning": Value("string"),
        "cluster_id": Value("int64"),
        "sources": List(Value("string")),
        "source_scores": List(Value("int32")),
        "distiller": Value("string"),
        "prompt_hash": Value("string"),
    }
)
MERGED = Features(
    {
        **{name: DISTILLED[name] for name in DISTILLED},
        "source": Value("string"),
        "score": Value("int32"),
        "long_tail_score": Value("float32"),
        "novelty": Value("float32"),
        "coverage": Value("float32"),
        "origin": Value("string"),
    }
)
