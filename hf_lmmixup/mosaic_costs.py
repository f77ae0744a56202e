"""How many tokens the marks and sentences of a mosaic take, counted once per template file instead of once per mosaic.

Example, with a BERT tokenizer: `Task 88:` and its line break take 3 tokens, `[START]` and `[STOP]` 6, the longest
sentence of the type `again` 17.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_lmmixup.mosaic_templates import Templates


JOINTS = 4
"""Tokens added per row: where two texts meet, a tokenizer may need one more than for the two alone."""

SEPARATORS = ("\n\n", "\n\n\n", "\n\n---\n\n", "\n\n***\n\n", "\n\n=====\n\n")
"""What may stand between two answers; later ones only where an earlier one occurs inside an answer."""


@dataclass(frozen=True)
class TemplateCosts:
    """Tokens of the marks and sentences of a template file.

    Attributes:
        numbers: Per way of numbering, once in the prompt and once in the answer.
        wrappers: Per pair of marks.
        sequence: Per number in a list of numbers.
        separator: Twice the longest separator, for prompt and answers.
        phrases: Type -> its longest phrasing.
    """

    numbers: tuple[int, ...]
    wrappers: tuple[int, ...]
    sequence: int
    separator: int
    phrases: dict[str, int]

    def item(self, number: int, wrapper: int) -> int:
        """Marks around one row, in one turn."""
        marks = (self.numbers[number] if number >= 0 else 0) + (self.wrappers[wrapper] if wrapper >= 0 else 0)
        return marks + self.separator + JOINTS

    def sentences(self, strategy: str, method: str, wrapper: int, turns: int) -> int:
        """The meta-instructions of one mosaic at their longest, over all turns."""
        kinds = [] if strategy == "primary" else ["intro", "numbered"]
        kinds += ["wrapped"] if wrapper >= 0 else []
        kinds += [f"{'order' if strategy == 'permute' else 'mask'}_{method}", "ties"] if method else []
        return sum(self.phrases[kind] for kind in kinds) + (turns - 1) * self.phrases["again"]


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
    longest_open, longest_close = (max((pair[side] for pair in templates.wrappers), key=len) for side in (0, 1))
    values = {"count": largest, "sequence": "", "open": longest_open, "close": longest_close}
    kinds = [kind for kind, phrasings in templates.phrases.items() for _ in phrasings]
    phrases = [text.format(**values) + " " for phrasings in templates.phrases.values() for text in phrasings]
    longest: dict[str, int] = {}
    for kind, count in zip(kinds, counter(phrases), strict=True):
        longest[kind] = max(longest.get(kind, 0), count + 1)
    numbers = counter([number.replace("{n}", largest) + "\n" for number in templates.numbers])
    marks = counter([mark for pair in templates.wrappers for mark in pair])
    return TemplateCosts(
        numbers=tuple(2 * count for count in numbers),
        wrappers=tuple(a + b for a, b in zip(marks[::2], marks[1::2], strict=True)),
        sequence=max(counter([f"{largest}{separator}" for separator in templates.sequences])),
        separator=2 * max(counter(list(SEPARATORS))),
        phrases=longest,
    )
