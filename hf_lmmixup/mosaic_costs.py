"""How many tokens the marks and sentences of a mosaic take, counted once per template file instead of once per mosaic.

Example, with a BERT tokenizer: `Task 88:` and a line break take 3 tokens, `[START]` and `[STOP]` 6.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_lmmixup.mosaic_templates import Templates


JOINTS = 4
"""Tokens added per row: where two texts meet, a tokenizer may need one more than for the two alone."""

SEPARATORS = ("\n\n", "\n\n\n", "\n\n---\n\n", "\n\n***\n\n", "\n\n=====\n\n")
"""What may stand between answers without marks; later ones only where an earlier one occurs inside an answer."""


@dataclass(frozen=True)
class TemplateCosts:
    """Tokens of the marks and sentences of a template file.

    Attributes:
        numbers: Per way of numbering, in the prompt and in the answers together.
        wrappers: Per pair of marks.
        sequence: Per number in a list of numbers.
        blank: A blank line.
        separator: The longest of `SEPARATORS`.
        phrases: Type -> tokens of each phrasing; without the values of its placeholders, but with a number.
    """

    numbers: tuple[int, ...]
    wrappers: tuple[int, ...]
    sequence: int
    blank: int
    separator: int
    phrases: dict[str, tuple[int, ...]]

    def item(self, number: int, wrapper: int) -> int:
        """What surrounds one row in one turn, in the prompt and in the answers; -1 means none."""
        if number < 0 and wrapper < 0:
            return self.blank + self.separator + JOINTS
        marks = (self.numbers[number] if number >= 0 else 0) + (self.wrappers[wrapper] if wrapper >= 0 else 0)
        return marks + 2 * self.blank + JOINTS

    def sentences(self, chosen: Sequence[tuple[str, float]], wrapper: int) -> int:
        """Sentences by type and draw, with the marks that they name."""
        tokens = self.blank + (self.wrappers[wrapper] + JOINTS if wrapper >= 0 else 0)
        for kind, draw in chosen:
            phrases = self.phrases[kind]
            tokens += phrases[int(draw * len(phrases))]
        return tokens


def template_costs(
    templates: Templates, counter: Callable[[Sequence[str]], list[int]], max_number: int
) -> TemplateCosts:
    """Count every mark and sentence of a template file once.

    Args:
        templates: The file's contents.
        counter: Texts -> tokens of each.
        max_number: The largest number that may be written.
    """
    largest = "8" * len(str(max_number))
    values = {"count": largest, "sequence": "", "open": "", "close": ""}
    numbers = counter([number.replace("{n}", largest) + "\n" for number in templates.numbers])
    marks = counter([mark for pair in templates.wrappers for mark in pair])
    return TemplateCosts(
        numbers=tuple(2 * count for count in numbers),
        wrappers=tuple(a + b for a, b in zip(marks[::2], marks[1::2], strict=True)),
        sequence=max(counter([f"{largest}{separator}" for separator in templates.sequences])),
        blank=counter(["\n\n"])[0],
        separator=max(counter(list(SEPARATORS))),
        phrases={
            kind: tuple(count + 1 for count in counter([f"{phrase.format(**values)} " for phrase in phrasings]))
            for kind, phrasings in templates.phrases.items()
        },
    )
