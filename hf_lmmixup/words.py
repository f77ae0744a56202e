r"""The words of a text with what stands around them, in one linear pass.

What kind of word it is often shows only in its place: `Q` before a colon is a label, `run` before a bracket is code, a
capital that opens a sentence says little. One word::

    split_words("Call `run` (twice).")[1]    # text "run", in_code True, before_bracket False
"""

import re
from dataclasses import dataclass
from functools import lru_cache


# A run of word characters and single joiners. Joiners and word characters are disjoint, so the match is linear.
_CHUNK = re.compile(r"\w+(?:[.,'\u2019:/@-]\w+)*")
_PIECE = re.compile(r"[0-9]+(?:[.,][0-9]+)++\w*|[^.,:/@-]+")  # a figure with what is written behind it: `2.5kg`
_BACKTICKS = re.compile(r"`+")

KEPT_WORDS = 65_536
"""Words that are remembered: most of a text's are those of the text before."""

KEPT_PIECES = 4096
"""The same of words with marks around them, which seldom come again, unless a text is made of a few."""

LONGEST_KEPT = 40
"""Characters of a word that is remembered, with those before it; what is longer is none, and would fill the memory."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a text."""

    text: str
    folded: str
    single: str  # folded, without the s of a plural or genitive
    is_plain: bool  # small letters alone
    is_prose: bool  # plain, ASCII, after a space, and nothing that tells more stands around it; as most words are
    opens: bool  # first word of a sentence, a line, a quotation or a bracket
    is_label: bool  # a colon or a closing bracket follows, as in `Q:` and `B)`
    before_bracket: bool
    in_code: bool
    numbers_line: bool  # the `1.` or `2)` of a list
    negative: bool
    spaced: bool  # only one space or hyphen parts it from the word before


def split_words(text: str) -> list[Word]:
    """The words of a text, in order.

    Args:
        text: Any text, in Unicode's form NFKC.
    """
    words: list[Word] = []
    end, in_code = 0, False
    ticks_left = sum(1 for _ in _BACKTICKS.finditer(text)) if "`" in text else 0
    for match in _CHUNK.finditer(text):
        chunk, (start, after) = match.group(), match.span()
        gap = text[end:start]
        if gap == " " and len(chunk) <= LONGEST_KEPT and chunk.isalpha():  # most words
            words.append(_word_after_space(chunk, text[after : after + 1], in_code))
        else:
            for _ in _BACKTICKS.finditer(gap) if "`" in gap else ():
                # The last of an odd number of backtick runs opens nothing.
                in_code = not in_code and ticks_left > 1
                ticks_left -= 1
            negative = gap[-1:] in ("-", "\u2212") and not text[start - 2 : start - 1].isalnum()
            pieces = _kept_pieces if len(chunk) + len(gap) <= LONGEST_KEPT else _pieces
            words += pieces(chunk, gap, text[after : after + 2], in_code, start == 0, negative)
        end = after
    return words


@lru_cache(maxsize=KEPT_WORDS)
def _word_after_space(text: str, following: str, in_code: bool) -> Word:
    folded = text.casefold()
    return Word(
        text=text,
        folded=folded,
        single=singular(folded),
        is_plain=text.islower(),
        is_prose=text.islower() and text.isascii() and not in_code and following not in (":", ")", "("),
        opens=False,
        is_label=following in (":", ")"),
        before_bracket=following == "(",
        in_code=in_code,
        numbers_line=False,
        negative=False,
        spaced=True,
    )


def _pieces(chunk: str, gap: str, behind: str, in_code: bool, is_first: bool, negative: bool) -> list[Word]:
    """The words of a chunk, between what stands before it and the two characters behind it."""
    initials = "." in chunk and all(len(part) == 1 and part.isalpha() for part in chunk.split("."))
    parts = [chunk] if initials or chunk.isalnum() else _PIECE.findall(chunk)
    following = behind[:1]
    line_start = is_first or "\n" in gap
    numbers_line = line_start and chunk.isdigit() and behind in (". ", ") ", ".", ")")
    return [
        Word(
            text=part,
            folded=part.casefold(),
            single=singular(part.casefold()),
            is_plain=part.isalpha() and part.islower(),
            is_prose=False,
            opens=place == 0 and (is_first or gap != " " and any(mark in gap for mark in '.!?:;\n"\u201c()*#')),
            is_label=place == len(parts) - 1 and following in (":", ")"),
            before_bracket=place == len(parts) - 1 and following == "(" and not part.isdigit(),
            in_code=in_code,
            numbers_line=numbers_line,
            negative=negative and place == 0,
            spaced=place > 0 or gap in (" ", "-"),
        )
        for place, part in enumerate(parts)
    ]


_kept_pieces = lru_cache(maxsize=KEPT_PIECES)(_pieces)


@lru_cache(maxsize=KEPT_WORDS)
def singular(word: str) -> str:
    """A case-folded word without the s of a plural or genitive."""
    word = word.removesuffix("'s").removesuffix("\u2019s")
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and len(word) > 3 and not word.endswith(("ss", "us", "is")) else word
