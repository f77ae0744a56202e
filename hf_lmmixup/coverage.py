r"""How much of its cluster an answer preserves, and how much it makes up.

The published rewards never look at the input cluster, so an answer that loses or invents content earns as much as a
faithful one. Here an answer is held against its sources fact by fact (see `facts`). One answer::

    sources  "Q: tides?\nA: moon pulls the sea", "Q: how often\nA: 2 tides a day, each 12 hours"
    answer   "Q: What causes tides?\nA: The Moon pulls the sea; two tides come each day, 12 hours apart."
    ->       kept 1.0, supported 1.0, sources 1.0
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from hf_lmmixup.facts import Facts, extract_facts, stem


HARD_WEIGHT = 2
"""What a number, a name or an identifier weighs against a content word."""

WORD_SUPPORT = 0.5
"""Share of an answer's content words that may be new: a good merge explains in words of its own."""

TOUCHED = 0.25
"""Share of a source's facts that an answer must hold to have used that source at all."""

MAX_CHARACTERS = 16_384
"""What follows is not read; answers of the five kinds have a few hundred characters."""

REMEMBERED_SOURCES = 8192
"""Texts whose facts are kept: the sources of a prompt are met once for each of its completions."""


@dataclass(frozen=True)
class Coverage:
    r"""Three shares in [0, 1].

    Attributes:
        kept: Facts of the sources that the answer holds. A fact counts once for each source that states it; numbers,
            names and code count twice as much as content words.
        supported: Hard facts of the answer that a source states, times the support of its content words.
        sources: Sources of which the answer holds at least a quarter of the facts.
    """

    kept: float
    supported: float
    sources: float

    @property
    def value(self) -> float:
        r"""$(\text{kept} \cdot \text{supported} \cdot \text{sources})^{1/3}$: none can make up for another one."""
        return float((self.kept * self.supported * self.sources) ** (1 / 3))


def measure_coverage(answer: str, sources: Sequence[str]) -> Coverage | None:
    """Hold an answer against the cluster that it was merged from.

    Args:
        answer: The text inside `<answer>`.
        sources: The weak texts.

    Returns:
        The three shares; `None` if the sources state nothing that can be counted.
    """
    known = [facts for text in sources if (facts := _facts(text)).hard or facts.words]
    if not known:
        return None
    stated = extract_facts(answer[:MAX_CHARACTERS])
    present = stated.words | {stem(token) for token in stated.tokens}
    held = [_held(facts, stated, present) for facts in known]
    whole = [HARD_WEIGHT * len(facts.hard) + len(facts.words) for facts in known]
    used = sum(part >= TOUCHED * total for part, total in zip(held, whole, strict=True))
    return Coverage(sum(held) / sum(whole), _support(stated, known), used / len(known))


def _held(facts: Facts, stated: Facts, present: frozenset[str]) -> float:
    hard = (facts.numbers & stated.numbers) | ((facts.names | facts.code) & stated.tokens)
    return HARD_WEIGHT * len(hard) + len(facts.words & present)


def _support(stated: Facts, known: Sequence[Facts]) -> float:
    numbers: frozenset[str] = frozenset().union(*(facts.numbers for facts in known))
    tokens: frozenset[str] = frozenset().union(*(facts.tokens for facts in known))
    backed = (stated.numbers & numbers) | ((stated.names | stated.code) & tokens)
    hard = len(backed) / len(stated.hard) if stated.hard else 1.0
    stems = {stem(token) for token in tokens}
    words = len(stated.words & stems) / len(stated.words) if stated.words else 1.0
    return hard * min(1.0, words / WORD_SUPPORT)


@lru_cache(maxsize=REMEMBERED_SOURCES)
def _facts(text: str) -> Facts:
    return extract_facts(text[:MAX_CHARACTERS])
