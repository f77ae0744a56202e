"""Rows that contain an evaluation text: found by shared n-grams and by embedding, reported row by row.

Run it twice: on the sources before rating, so that no money is spent on them, and on the distilled rows, because a
model can recite a benchmark that its inputs never held.

A text of an evaluation set is found in a row if the row holds at least half of its distinct 8-grams (Tulu 3,
arXiv 2411.15124), wherever they stand and whatever stands around them. A text of 4 to 7 words counts as one n-gram of
its own length. Words are compared without case, punctuation and differences of Unicode's forms (NFKC); in Chinese and
Japanese, which write no words apart, every character is one. Shares are taken of the evaluation text, so a short
question inside a long row is found.

One dropped row::

    {"c02e41d09b6f3a77": "decontaminate: holds a text of gsm8k (83% of the 8-grams of text 17, 'Natalia sold ...')"}
"""

import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from hf_lmmixup.bounds import DECONTAMINATE, check
from hf_lmmixup.neighbors import top_k
from hf_lmmixup.records import Outcome, pair_text
from hf_lmmixup.tables import without


logger = logging.getLogger(__name__)

NGRAM = 8
MIN_OVERLAP = 0.5
"""Words of an n-gram and the share of an evaluation text's n-grams that gives a row away (arXiv 2411.15124)."""

MIN_WORDS = 4
"""Shorter evaluation texts ("2 + 2 = ?") occur everywhere and are not searched for; how many is logged."""

MIN_SIMILARITY = 0.9
"""Cosine from which a row is taken for a rewording of an evaluation text; it belongs to the encoder."""

BATCH = 500
"""Rows that are searched at a time: each may share boilerplate with every evaluation text."""

EXCERPT = 60

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)


@dataclass(frozen=True)
class Contact:
    """One row that holds one evaluation text.

    Attributes:
        id: The row.
        evaluation: Name of the evaluation set.
        index: Number of the text in that set.
        excerpt: How the text begins.
        overlap: Share of its n-grams that the row holds, in [0, 1]; `None` if the embedding gave the row away.
        similarity: Cosine of the two embeddings; `None` if the n-grams gave the row away.
    """

    id: str
    evaluation: str
    index: int
    excerpt: str
    overlap: float | None = None
    similarity: float | None = None

    @property
    def reason(self) -> str:
        """The contact in words."""
        place = f"text {self.index}, {self.excerpt!r}"
        if self.overlap is not None:
            share = f"{self.overlap:.0%} of the {NGRAM}-grams of {place}"
            return f"decontaminate: holds a text of {self.evaluation} ({share})"
        return f"decontaminate: rewords a text of {self.evaluation} (cosine {self.similarity:.3f} to {place})"


def decontaminate(
    dataset: Dataset,
    evaluations: Mapping[str, Sequence[str]],
    *,
    min_overlap: float = MIN_OVERLAP,
    embeddings: np.ndarray | None = None,
    evaluation_embeddings: Mapping[str, np.ndarray] | None = None,
    min_similarity: float = MIN_SIMILARITY,
) -> Outcome:
    """Drop the rows that hold an evaluation text.

    Args:
        dataset: Rows with `id`, `prompt` and `completion`.
        evaluations: Name -> texts of each evaluation set, such as its questions.
        min_overlap: Share of an evaluation text's n-grams from which a row holds it.
        embeddings: The rows' unit vectors (n, d); without them only n-grams are compared.
        evaluation_embeddings: Name -> unit vectors (m, d) of the texts, by the same encoder.
        min_similarity: Cosine from which a row is a rewording of an evaluation text.

    Returns:
        The clean rows, in their order, and for every other row the evaluation text it holds.

    Raises:
        ValueError: If a threshold is not in (0, 1], or embeddings are missing or do not match.
    """
    check(DECONTAMINATE, {"min_similarity": min_similarity})
    contacts = ngram_contacts(dataset, evaluations, min_overlap=min_overlap)
    if embeddings is not None or evaluation_embeddings is not None:
        if embeddings is None or evaluation_embeddings is None:
            raise ValueError("Comparing embeddings needs both embeddings and evaluation_embeddings. Pass the other.")
        found = embedding_contacts(dataset, evaluations, embeddings, evaluation_embeddings, min_similarity)
        contacts = found | contacts
    reasons = {identifier: contact.reason for identifier, contact in contacts.items()}
    return Outcome(without(dataset, reasons), reasons)


def ngram_contacts(
    dataset: Dataset, evaluations: Mapping[str, Sequence[str]], *, min_overlap: float = MIN_OVERLAP
) -> dict[str, Contact]:
    """Row id -> the evaluation text of which the row holds the largest share of n-grams, if that is enough.

    Raises:
        ValueError: If `min_overlap` is not in (0, 1].
    """
    check(DECONTAMINATE, {"min_overlap": min_overlap})
    places = [(name, index) for name, texts in evaluations.items() for index in range(len(texts))]
    index = _NgramIndex([evaluations[name][number] for name, number in places])
    contacts = {}
    for batch in dataset.select_columns(["id", "prompt", "completion"]).iter(batch_size=BATCH):
        texts = [pair_text(*pair) for pair in zip(batch["prompt"], batch["completion"], strict=True)]
        for row, text, overlap in index.search(texts, min_overlap):
            name, number = places[text]
            excerpt = _excerpt(evaluations[name][number])
            contacts[batch["id"][row]] = Contact(batch["id"][row], name, number, excerpt, overlap=overlap)
    return contacts


def embedding_contacts(
    dataset: Dataset,
    evaluations: Mapping[str, Sequence[str]],
    embeddings: np.ndarray,
    evaluation_embeddings: Mapping[str, np.ndarray],
    min_similarity: float = MIN_SIMILARITY,
) -> dict[str, Contact]:
    """Row id -> the nearest evaluation text, if it is at least `min_similarity` similar.

    Raises:
        ValueError: If rows or texts and their embeddings do not match.
    """
    ids = dataset["id"][:]
    if len(embeddings) != len(ids):
        raise ValueError(f"{len(ids)} rows need as many embeddings, not {len(embeddings)}.")
    contacts: dict[str, Contact] = {}
    for name, texts in evaluations.items():
        vectors = evaluation_embeddings.get(name)
        if vectors is None or len(vectors) != len(texts):
            raise ValueError(f"The {len(texts)} texts of {name!r} need as many rows in evaluation_embeddings.")
        if not len(texts):
            continue
        similarities, nearest = top_k(vectors, embeddings, 1)
        for row in np.flatnonzero(similarities[:, 0] >= min_similarity).tolist():
            number, similarity = int(nearest[row, 0]), float(similarities[row, 0])
            known = contacts.get(ids[row])
            if known is None or similarity > (known.similarity or 0):
                excerpt = _excerpt(texts[number])
                contacts[ids[row]] = Contact(ids[row], name, number, excerpt, similarity=similarity)
    return contacts


class _NgramIndex:
    """The distinct n-grams of texts, as 64-bit hashes, each with the texts that hold it.

    Two different n-grams share a hash with a chance of 2^-64: with 10^8 n-grams of rows and 10^6 of evaluations, one
    false n-gram in 10^5 runs.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.vocabulary: dict[str, int] = {}
        pairs: dict[int, list[np.ndarray]] = {}
        self.totals = np.zeros(len(texts), np.int64)
        skipped = 0
        for number, text in enumerate(texts):
            words = [self.vocabulary.setdefault(word, len(self.vocabulary) + 1) for word in _words(text)]
            if len(words) < MIN_WORDS:
                skipped += 1
                continue
            length = min(NGRAM, len(words))
            grams = np.unique(_hashes(np.array(words, np.uint64), length))
            self.totals[number] = len(grams)
            pairs.setdefault(length, []).append(np.stack([grams, np.full(len(grams), number, np.uint64)]))
        if skipped:
            logger.warning("%d of %d evaluation texts have under %d words: skipped.", skipped, len(texts), MIN_WORDS)
        self.postings = {length: _sorted_pairs(np.concatenate(found, axis=1)) for length, found in pairs.items()}

    def search(self, texts: Sequence[str], min_overlap: float) -> list[tuple[int, int, float]]:
        """(row, text, overlap) of each row that holds enough of a text; the largest overlap, then the first text."""
        lookup = self.vocabulary.get
        words = [[lookup(word, 0) for word in _words(text)] for text in texts]
        lengths = np.array([len(row) for row in words], np.int64)
        flat = np.fromiter((word for row in words for word in row), np.uint64, int(lengths.sum()))
        owners = np.repeat(np.arange(len(texts)), lengths)
        hits = [self._hits(flat, owners, length) for length in self.postings]
        if not hits:
            return []
        pairs, counts = np.unique(np.concatenate(hits), return_counts=True)
        rows, found = np.divmod(pairs, len(self.totals))
        overlaps = counts / self.totals[found]
        best: dict[int, tuple[int, int, float]] = {}
        for row, text, overlap in zip(rows.tolist(), found.tolist(), overlaps.tolist(), strict=True):
            if overlap >= min_overlap and (row not in best or overlap > best[row][2]):
                best[row] = (row, text, overlap)
        return list(best.values())

    def _hits(self, words: np.ndarray, owners: np.ndarray, length: int) -> np.ndarray:
        """`row * texts + text` for each text that holds an n-gram of this length of a row, once for each n-gram."""
        grams, numbers = self.postings[length]
        if len(words) < length:
            return np.zeros(0, np.int64)
        last = length - 1
        known = np.convolve(words == 0, np.ones(length, np.int64), "valid") == 0
        windows = np.flatnonzero(known & (owners[: len(words) - last] == owners[last:]))
        hashes = _hashes(words, length)[windows]
        first = np.searchsorted(grams, hashes, "left")
        count = np.searchsorted(grams, hashes, "right") - first
        # An n-gram counts once a row. Boilerplate that all texts and rows share makes the list of holders long, so it
        # is drawn up after that.
        rows, held = owners[windows], count > 0
        _, once = np.unique(rows[held] * len(grams) + first[held], return_index=True)
        rows, first, count = rows[held][once], first[held][once], count[held][once]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(rows * len(self.totals), count) + numbers[np.repeat(first, count) + within].astype(np.int64)


def _words(text: str) -> list[str]:
    if text.isascii():  # the same, in less time
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _hashes(words: np.ndarray, length: int) -> np.ndarray:
    """Hash of each window of `length` word numbers: a polynomial of mixed words, modulo 2^64."""
    mixed = words * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    mixed ^= mixed >> np.uint64(29)
    windows = len(words) - length + 1
    total = np.zeros(windows, np.uint64)
    for offset in range(length):
        total = total * np.uint64(0xA0761D6478BD642F) + mixed[offset : offset + windows]
    return total


def _sorted_pairs(pairs: np.ndarray) -> np.ndarray:
    """(hash, text) pairs (2, p) in order of hash, then of text."""
    ordered: np.ndarray = pairs[:, np.lexsort((pairs[1], pairs[0]))]
    return ordered


def _excerpt(text: str) -> str:
    line = " ".join(text[: 4 * EXCERPT].split())
    return line if len(line) <= EXCERPT else line[:EXCERPT].rsplit(" ", 1)[0] + " ..."
