"""How much of a cluster an answer preserves, and how much it invents, by its words, numbers and names.

The published reward never looks at the input cluster, so an answer that loses or invents content earns as much as a
faithful one. Here the *facts* of a text are its numbers, its names and its content words; a fact is supported if a
source holds it. No model and no backtracking expression: one pass over the characters.

One answer::

    coverage("A: The Moon raises two tides a day.", ["A: moon pulls the sea", "A: there are 2 or two tides a day"])
    ->  Coverage(kept=0.71, supported=0.86, sources=1.0)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


MIN_WORD = 4
"""Shorter lower-case words carry grammar rather than content."""

STEM = 5
"""Words are compared by this many first letters, so that `tide`, `tides` and `tidal` partly meet."""

SUPPORT_FLOOR = 0.5
"""Share of an answer's facts that may be new wording before it counts as invention: a good merge explains."""

SOURCE_SHARE = 0.2
"""Share of a source's facts that must appear for the source to count as covered."""

MAX_CHARACTERS = 65_536


@dataclass(frozen=True)
class Coverage:
    """Three shares in [0, 1]: facts of the sources kept, facts of the answer supported, sources touched at all."""

    kept: float
    supported: float
    sources: float

    @property
    def value(self) -> float:
        """Their product's cube root, so that none can make up for another one."""
        return (self.kept * self.supported * self.sources) ** (1 / 3)


def facts(text: str) -> set[str]:
    """Numbers, names and content words of a text, normalized for comparison."""
    spaced = "".join(c if c.isalnum() else " " for c in text[:MAX_CHARACTERS])
    found = set()
    for word in spaced.split():
        if any(c.isdigit() for c in word):
            found.add(word.casefold())
        elif len(word) >= MIN_WORD or (len(word) > 1 and word[1:] != word[1:].lower()):
            found.add(word.casefold()[:STEM])
    return found


def coverage(answer: str, sources: Sequence[str]) -> Coverage | None:
    """Compare an answer with the cluster it was merged from.

    Args:
        answer: The text inside `<answer>`.
        sources: The weak texts.

    Returns:
        The three shares; `None` if no source holds a fact.
    """
    own = facts(answer)
    held = [found for found in map(facts, sources) if found]
    if not held:
        return None
    if not own:
        return Coverage(0.0, 0.0, 0.0)
    # A fact that several sources state weighs more: it is what the cluster is about.
    weights = Counter(fact for found in held for fact in found)
    kept = sum(weight for fact, weight in weights.items() if fact in own) / weights.total()
    supported = min(1.0, len(own & weights.keys()) / len(own) / SUPPORT_FLOOR)
    touched = sum(len(found & own) >= SOURCE_SHARE * len(found) for found in held) / len(held)
    return Coverage(kept, supported, touched)
