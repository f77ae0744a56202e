r"""What plain counting says about a text: length, wording, punctuation, and which words its first part uses.

An embedding places a text by its subject; how well it is written shows better in such counts. They feed the linear
head of a datastore. Everything is read in one pass over the words of a capped text, without regular expressions.

One text::

    "Q: tides?\nA: the moon, kind of"   ->   words 4, upper-case start 0, filler share 0.25, ends in a full stop 0 ...
"""

import string
import zlib
from collections.abc import Sequence
from itertools import pairwise
from math import log1p

import numpy as np

from hf_lmmixup.records import TaskType


MAX_CHARACTERS = 16_384
"""What follows is not counted; answers of the five kinds have a few hundred characters."""

DIVIDERS = {
    TaskType.QA: "\nA:",
    TaskType.MCQ: "\nA)",
    TaskType.TFQ: "\nAnswer:",
    TaskType.CS: "\nS:",
    TaskType.PARA: ". ",
}
"""Where the second part of each kind of text starts: answer, options, verdict, statement, second sentence."""

FEATURES = (
    "body words",
    "head words",
    "body characters",
    "distinct words",
    "word length",
    "share of figures",
    "figures",
    "commas",
    "colons and semicolons",
    "sentences",
    "sentence length",
    "sentences that start upper-case",
    "body ends a sentence",
    "head ends a sentence",
    "head starts upper-case",
    "body starts upper-case",
    "share of grammar words",
    "share of linking words",
    "share of filler words",
    "body words of the head",
    "head words in the body",
    "share of long words",
    "lines",
    "unusual characters",
    "hesitation marks",
    "capitals",
    "distinct content words",
    "head asks",
)

GRAMMAR = frozenset(
    "the a an of to in and or is are was were be been it its that this with for on as at by from which who when where "
    "why how what because so if then not".split()
)
LINKING = frozenset(
    "because so therefore since when if while but although which whereas hence thus instead then".split()
)
FILLER = frozenset(
    "stuff thing things something kind sort basically really very like you know etc lot somehow whatever "
    "anyway".split()
)
ASKING = frozenset("who what when where why how is are does do can which".split())
PUNCTUATION = ".,;:!?()\"'"
COMMON = frozenset(".,;:'\"-?!()\n " + string.ascii_lowercase + string.digits)
"""Characters that say nothing about a text by being there; capitals are counted."""

BUCKETS = 2048
"""Size of the table that word pairs are hashed into; bucket 0 is padding."""
BUCKET_WIDTH = 64
"""Hashed words and word pairs kept of one text."""
OPENING_WORDS = 4
"""The first words of an instruction say what kind of task it is, so their sequences count separately."""


def text_parts(text: str, task_type: TaskType | str) -> tuple[str, str]:
    """Divide a text of one of the five kinds into its head and body, without the labels.

    A text without the divider of its kind is its own head and body.
    """
    head, found, body = text[:MAX_CHARACTERS].partition(DIVIDERS[TaskType(task_type)])
    if not found:
        return head.strip(), head.strip()
    label, colon, rest = head.partition(":")
    return (rest if colon and len(label) <= len("Statement") else head).strip(), body.strip()


def text_features(texts: Sequence[str], task_types: Sequence[str]) -> np.ndarray:
    """The counts of each text (n, len(FEATURES)) float32, in the order of `FEATURES`."""
    rows = [_counts(*text_parts(text, kind)) for text, kind in zip(texts, task_types, strict=True)]
    return np.array(rows, np.float32).reshape(len(texts), len(FEATURES))


def word_buckets(texts: Sequence[str], task_types: Sequence[str]) -> np.ndarray:
    """Hashed words and word pairs of each text's head (n, BUCKET_WIDTH) uint16, padded with 0."""
    rows = np.zeros((len(texts), BUCKET_WIDTH), np.uint16)
    for row, (text, kind) in enumerate(zip(texts, task_types, strict=True)):
        found = _buckets(text_parts(text, kind)[0])
        rows[row, : len(found)] = found
    return rows


def _words(text: str) -> list[str]:
    return [word for raw in text.lower().split() if (word := raw.strip(PUNCTUATION))]


def _counts(head: str, body: str) -> list[float]:
    words, asked = _words(body), _words(head)
    count, distinct, asked_for = max(1, len(words)), set(words), set(asked)
    content = {word for word in distinct if len(word) > 3}
    figures = len([word for word in words if not word.isalpha() and any(map(str.isdigit, word))])
    rare = set(body) - COMMON
    sentences = [part for part in body.replace("!", ".").replace("?", ".").split(". ") if part]
    length = max(1, len(body))
    return [
        log1p(len(words)),
        log1p(len(asked)),
        log1p(len(body)),
        len(distinct) / count**0.8,
        sum(map(len, words)) / count,
        figures / count,
        log1p(figures),
        body.count(",") / count,
        (body.count(";") + body.count(":")) / count,
        log1p(len(sentences)),
        log1p(len(words) / max(1, len(sentences))),
        sum(part.lstrip()[:1].isupper() for part in sentences) / max(1, len(sentences)),
        float(body[-1:] in '.!?)"' and bool(body)),
        float(head[-1:] in "?.:" and bool(head)),
        float(head[:1].isupper()),
        float(body[:1].isupper()),
        len([word for word in words if word in GRAMMAR]) / count,
        len([word for word in words if word in LINKING]) / count,
        len([word for word in words if word in FILLER]) / count,
        len(content & asked_for) / max(1, len(content)),
        len(asked_for & distinct) / max(1, len(asked_for)),
        len([word for word in words if len(word) >= 7]) / count,
        log1p(body.count("\n")),
        len([character for character in rare if not character.isalnum()]) / length**0.5,
        float(".." in body or "!!" in body or "??" in body),
        sum([body.count(character) for character in rare if character.isupper()]) / length,
        log1p(len(content)),
        float(bool(asked) and asked[0] in ASKING),
    ]


def _buckets(head: str) -> list[int]:
    words = [word.encode("utf-8", "replace") for word in _words(head[: BUCKET_WIDTH * 16])[:BUCKET_WIDTH]]
    opening = words[:OPENING_WORDS]
    grams = [
        b"^" + b" ".join(opening[i:j]) for i in range(len(opening)) for j in range(i + 1, min(i + 4, len(opening) + 1))
    ]
    grams += [*words, *map(b" ".join, pairwise(words))]
    hashed = [1 + found % (BUCKETS - 1) for found in map(zlib.crc32, grams)]
    return list(dict.fromkeys(hashed))[:BUCKET_WIDTH]
