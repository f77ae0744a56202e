r"""Articles to segments: the text that a MIXTURE of one's own is made from.

An article is a title, sections of prose, and where they come from under which license. A segment is one coherent piece
of 25 to 160 words: short neighboring paragraphs are joined, long ones are cut between sentences. Later the test split
is drawn by article, so that no article has segments on both sides. A row of a JSONL file of articles, and a segment::

    {"title": "Tides", "text": "Tides rise ...\n\nThe Moon ...", "source": "my wiki", "license": "CC-BY-4.0"}
    Segment(article="Tides", title="Tides", text="Tides rise and fall ...", source="my wiki", license="CC-BY-4.0")

A row may have `sections`, a list of `{"title", "text"}`, in place of `text`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_lmmixup.jsonl import Reject, read_json
from hf_lmmixup.wording import split_sentences


MIN_WORDS, MAX_WORDS = 25, 160
"""A segment's length. Below there is nothing to distil; above, one target cannot hold it."""

PROSE_SHARE = 0.85
"""Share of a segment's characters that are letters, spaces or ordinary marks; tables and code have less."""

_ORDINARY = re.compile(r"[A-Za-z ,.;:'\"()-]")


@dataclass(frozen=True)
class Article:
    """A titled text with its provenance.

    Attributes:
        title: What tells articles apart; two rows with one title are one article.
        sections: Title and text of each part.
        source: Where it comes from.
        license: Its license, best as an SPDX expression.
    """

    title: str
    sections: tuple[tuple[str, str], ...]
    source: str
    license: str


@dataclass(frozen=True)
class Segment:
    """One coherent piece of an article."""

    article: str
    title: str
    text: str
    source: str
    license: str


@dataclass
class Segmentation:
    """What `segment` returns: the segments, and how many pieces were left out, by reason."""

    segments: list[Segment] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)


def read_articles(path: str | Path) -> Iterator[Article]:
    """Read a JSONL file of articles.

    Args:
        path: The file.

    Yields:
        One article a row.

    Raises:
        ValueError: If a row cannot be read or lacks a title, a text, a source or a license; the message names it.
    """
    for place, row in read_json(path):
        if isinstance(row, Reject):
            raise ValueError(f"{place}: {row.reason}")
        sections = row.get("sections", [{"title": row.get("title"), "text": row.get("text")}])
        pairs = [(part.get("title"), part.get("text")) for part in _objects(sections)]
        texts = [row.get("title"), row.get("source"), row.get("license"), *(text for pair in pairs for text in pair)]
        if not pairs or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(
                f"{place}: an article has 'title', 'source', 'license' and 'text' (or 'sections', a list of "
                f"{{'title', 'text'}}), all of them text; this one has {sorted(row)}."
            )
        yield Article(row["title"], tuple((str(a), str(b)) for a, b in pairs), row["source"], row["license"])


def segment(articles: Iterable[Article]) -> Segmentation:
    """Cut articles into segments, each text once.

    Args:
        articles: Any number of them.

    Returns:
        The segments in order, and counts of what was left out: too short, no prose, or seen before.
    """
    result, seen = Segmentation(), set()
    for article in articles:
        for title, text in article.sections:
            for piece in _pieces(text):
                words = piece.split()
                key = " ".join(words).casefold()
                if len(words) < MIN_WORDS:
                    reason = f"shorter than {MIN_WORDS} words"
                elif len(_ORDINARY.findall(piece)) < PROSE_SHARE * len(piece):
                    reason = "no prose"
                elif key in seen:
                    reason = "seen before"
                else:
                    seen.add(key)
                    result.segments.append(Segment(article.title, title, piece, article.source, article.license))
                    continue
                result.dropped[reason] = result.dropped.get(reason, 0) + 1
    return result


def _pieces(text: str) -> Iterator[str]:
    """Paragraphs, joined while short and cut between sentences while long."""
    piece: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in split_sentences(" ".join(paragraph.split())):
            if piece and len(" ".join([*piece, sentence]).split()) > MAX_WORDS:
                yield " ".join(piece)
                piece = []
            piece.append(sentence)
        if len(" ".join(piece).split()) >= MIN_WORDS:
            yield " ".join(piece)
            piece = []
    if piece:
        yield " ".join(piece)


def _objects(value: Any) -> list[dict[str, Any]]:
    return value if isinstance(value, list) and all(isinstance(part, dict) for part in value) else []
