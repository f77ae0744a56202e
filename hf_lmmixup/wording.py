r"""What a text is made of: labels that carry its form, sentences, and terms that carry its facts.

Corruptions use it to spoil a text without breaking its form; checks and rewards use it to ask which facts of one text
another one has. One text::

    >>> terms(["Q: Who?\nA: Ada Lovelace, in 1843."])
    ['who', 'ada', 'lovelace', 'in', '1843']
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


LABELS = frozenset(["Q:", "A:", "C:", "S:", "Statement:", "Answer:", "A)", "B)", "C)", "D)"])
"""Words that carry the form of a text in one of the five task types."""

LONGEST_LABEL = max(map(len, LABELS))

FINAL_MARKS = ".!?\u061f\u06d4\u0964"
"""What ends a sentence before a space, in Latin, Arabic and Devanagari scripts."""

FULL_WIDTH_MARKS = "\u3002\uff01\uff1f"
"""What ends a sentence in Chinese and Japanese, with no space behind it."""

_BETWEEN_SENTENCES = re.compile(
    f"(?<=[{FINAL_MARKS}])\\s+(?=[^a-z])|(?<=[{FULL_WIDTH_MARKS}])(?![\u300d\u300f\uff09\u201d])\\s*"
)

_TERM = re.compile(r"[A-Za-z0-9]+(?:[.,'/-][A-Za-z0-9]+)*")


def terms(texts: Sequence[str]) -> list[str]:
    """The distinct words and figures of some texts, lower case, in order of first appearance, without labels."""
    seen: dict[str, None] = {}
    for text in texts:
        for word in text.split():
            if word not in LABELS:
                seen.update(dict.fromkeys(term.lower() for term in _TERM.findall(word)))
    return list(seen)


def split_form(text: str) -> tuple[str, str]:
    r"""Part a text after its last label: `"Q: x\nA: y"` -> `("Q: x\nA: ", "y")`; without labels the head is empty.

    What a multiple-choice or true-false item answers belongs to the head too, if an explanation follows it:
    `"Statement: x\nAnswer: True. Why."` -> `("Statement: x\nAnswer: True. ", "Why.")`.
    """
    end = 0
    for start in [0, *(match.end() for match in re.finditer("\n", text))]:
        label = text[start : start + LONGEST_LABEL + 1].split(" ", 1)[0].rstrip("\n")
        if label in LABELS:
            end = start + len(label)
            end += len(text[end:]) - len(text[end:].lstrip(" "))
    sentences = split_sentences(text[end:])
    if len(sentences) > 1 and (sentences[0][:2] in LABELS or sentences[0].lower() in ("true.", "false.")):
        end = text.index(sentences[1], end + len(sentences[0]))
    return text[:end], text[end:].strip()


def split_sentences(text: str) -> list[str]:
    """Sentences by their final mark; never empty ones, and a text without marks is one sentence.

    A mark before a small letter ends nothing: `e.g. this`. Full-width marks need no space behind them.
    """
    return [part for part in _BETWEEN_SENTENCES.split(text.strip()) if part]


@dataclass(frozen=True)
class Expectation:
    """What a good distillation of a corrupted text does, in words that can be counted.

    Attributes:
        restore: Terms of the original that the corrupted text lost, lower case, in order of appearance.
        drop: Terms that only the corrupted text has.
    """

    restore: tuple[str, ...]
    drop: tuple[str, ...]

    def met(self, distilled: str) -> float:
        """The share of the expectation that a text meets, in [0, 1]; 1.0 if nothing was expected."""
        present = set(terms([distilled]))
        kept = sum(term in present for term in self.restore) + sum(term not in present for term in self.drop)
        expected = len(self.restore) + len(self.drop)
        return kept / expected if expected else 1.0


def expectation(original: str, corrupted: str) -> Expectation:
    """The inverse expectation of one corruption: what has to come back and what has to go.

    Args:
        original: The text before.
        corrupted: The text after.

    Returns:
        The terms on both sides; the original itself always meets it fully.
    """
    before, after = terms([original]), terms([corrupted])
    return Expectation(
        restore=tuple(term for term in before if term not in set(after)),
        drop=tuple(term for term in after if term not in set(before)),
    )
