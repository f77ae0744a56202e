r"""What a cluster must satisfy before it may teach: nothing to invent, nothing to copy.

- A target's facts stand in its variants: a distiller that is trained otherwise learns to make facts up.
- No variant holds the target: a distiller that is trained otherwise learns to copy one input.

One verdict::

    check_cluster("Q: When?\nA: In 1843, by Ada Lovelace.", ["Q: when\nA: 1843", "Q: who\nA: Ada"], "qa")
    ->  "facts missing from the variants"      # nobody says Lovelace
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from hf_lmmixup.facts import Facts, extract_facts, stem
from hf_lmmixup.prompts import answer_matches
from hf_lmmixup.records import TaskType
from hf_lmmixup.wording import split_form


MAX_RUN = 0.8
"""Share of the target's words that may stand in one variant in one piece. The halves of a target hold 0.55 each."""

MIN_WORDING = 0.9
"""Share of the target's content words that the variants must hold; names and numbers must all be there."""

_WORD = re.compile(r"\w+")


def check_cluster(target: str, variants: Sequence[str], task_type: TaskType | str) -> str | None:
    """Judge a cluster.

    Args:
        target: Its target.
        variants: Its weak texts.
        task_type: What form the target must have.

    Returns:
        None if it may be used, else the reason why not.
    """
    if not answer_matches(target, task_type):
        return "target not in the form of its task type"
    if len(set(variants)) < 2:
        return "fewer than two variants"
    if any(leaks(target, variant) for variant in variants):
        return "target leaked into a variant"
    if not supported(target, variants):
        return "facts missing from the variants"
    return None


def leaks(target: str, variant: str) -> bool:
    """Whether a variant holds the target's last labeled part, or more than `MAX_RUN` of it in one piece.

    Words are compared without case and marks, so a target with other punctuation is still the target.
    """
    body = _WORD.findall(split_form(target)[1].casefold())
    inside = " " + " ".join(_WORD.findall(variant.casefold())) + " "
    run = max(1, int(MAX_RUN * len(body)) + 1) if len(body) > 1 else 1
    return any(f" {' '.join(body[i : i + run])} " in inside for i in range(len(body) - run + 1)) if body else False


def supported(target: str, variants: Sequence[str]) -> bool:
    """Whether the variants together hold the facts of the target."""
    stated = _facts(target)
    known = [_facts(variant) for variant in variants]
    tokens = frozenset().union(*(facts.tokens for facts in known))
    numbers = frozenset().union(*(facts.numbers for facts in known))
    if stated.numbers - numbers or (stated.names | stated.code) - tokens:
        return False
    held = {stem(token) for token in tokens}
    return len(stated.words & held) >= MIN_WORDING * len(stated.words)


@lru_cache(maxsize=4096)
def _facts(text: str) -> Facts:
    """The same variants are checked after every change of one of them."""
    return extract_facts(text)
