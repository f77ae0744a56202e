"""Near-duplicates by shared word shingles: exact, no model, no n x n comparison.

A shingle is a run of four words without case and marks. Two texts are near-duplicates if the shorter one's shingles
are mostly in the other one too (containment, Broder 1997), so that a text inside a longer one is found as well. One
pair::

    near_duplicates(["The Moon pulls the oceans every day."], ["Indeed the moon pulls the oceans every day, twice."])
    ->  {0: 0}
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence


SHINGLE_WORDS = 4
MIN_CONTAINMENT = 0.5
"""Share of the shorter text's shingles from which two texts count as one."""

MAX_POSTINGS = 500
"""A shingle that stands in more texts than this is a figure of speech and finds nothing."""

_WORD = re.compile(r"\w+")


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The distinct shingles of a text; a shorter text is one shingle of its own."""
    words = _WORD.findall(text.casefold())
    if len(words) <= SHINGLE_WORDS:
        return frozenset([tuple(words)]) if words else frozenset()
    return frozenset(tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1))


def near_duplicates(
    texts: Sequence[str], others: Sequence[str], *, min_containment: float = MIN_CONTAINMENT
) -> dict[int, int]:
    """Find texts that nearly repeat one of some others.

    Args:
        texts: The texts to judge, such as the test split.
        others: The texts they must not repeat, such as the train split.
        min_containment: From which share of shared shingles on two texts count as one, in (0, 1].

    Returns:
        Index of a text -> index of the other it shares most with; texts without a near-duplicate are left out.
    """
    known = [shingles(other) for other in others]
    postings: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, one in enumerate(known):
        for shingle in one:
            postings[shingle].append(number)
    found = {}
    for number, text in enumerate(texts):
        mine = shingles(text)
        shared: Counter[int] = Counter()
        for shingle in mine:
            candidates = postings.get(shingle, ())
            if len(candidates) <= MAX_POSTINGS:
                shared.update(candidates)
        rated = [(count / min(len(mine), len(known[other])), -other) for other, count in shared.items()]
        best = max(rated, default=(0.0, 0))
        if best[0] >= min_containment:
            found[number] = -best[1]
    return found
