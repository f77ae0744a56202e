"""What a distillation took from its sources, what it left out, and what it added: by words.

    >>> compare("The Moon pulls twice.", ["The Moon pulls. It is big."])
    [('The Moon pulls ', True), ('twice', False), ('.', True)]

Words are compared without case and marks. Words of one or two letters and the commonest function words say nothing
about where a text came from; between two words that were added they count as added too.
"""

import re
from collections.abc import Iterable
from itertools import pairwise


_WORD = re.compile(r"\w+", re.UNICODE)

SHORTEST_WORD = 3

COMMON = frozenset(
    """about after all also and any are because been before being between both but can could did does each for from had
    has have her him his how into its just may might more most not now off one only other our out over own per same
    she should some such than that the their them then there these they this those through too under until upon very
    was were what when where which while who whom why will with would you your""".split()
)
"""Words that occur in any English text; in other languages every word counts."""


def words(texts: Iterable[str]) -> frozenset[str]:
    """The distinct telling words of some texts."""
    return frozenset(
        word for text in texts for match in _WORD.finditer(text) if (word := match[0].casefold()) and _tells(word)
    )


def compare(text: str, others: Iterable[str]) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether its words occur in other texts.

    Args:
        text: The text.
        others: What it is compared with.

    Returns:
        Pieces that give the text when they are joined; neighbors differ.
    """
    known = words(others)
    cuts, found, end = [0], True, 0
    for match in _WORD.finditer(text):
        word = match[0].casefold()
        if _tells(word):
            if (word in known) != found:
                found = not found
                cuts.append(end if found else match.start())
            end = match.end()
    cuts += [len(text)] if found else [end, len(text)]
    pieces = [(text[start:stop], place % 2 == 0) for place, (start, stop) in enumerate(pairwise(cuts))]
    return [piece for piece in pieces if piece[0]]


def _tells(word: str) -> bool:
    return word not in COMMON and (len(word) >= SHORTEST_WORD or not word.isascii() or word.isdigit())
