"""The numbers of a text in one spelling, whether they stand in figures or in words.

    read_numbers(split_words("two hundred and fifty rooms, 1,843 beds"))[0]    ->  {"250", "1843"}

Words are put together as they are spoken: units behind tens, anything below a hundred behind `hundred`, with `and` or
without, and smaller groups behind `thousand` and what is larger. Two words that make no number together stay two.
"""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal

from hf_lmmixup.words import Word


_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
DIGIT_WORDS = {word: value for value, word in enumerate(f"{_UNITS} seventeen eighteen nineteen".split())} | {
    word: 10 * tens for tens, word in enumerate(_TENS.split(), 2)
}
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 10**9, "trillion": 10**12}
_NUMBER_WORDS = DIGIT_WORDS.keys() | SCALES.keys()

_LARGEST = 10**27
"""A number above it ends before the next scale: no decimal holds what a megabyte of `trillion` would make."""

UNSPACED = re.compile("[\u2e80-\u9fff]")
"""Scripts without spaces between words (Han, Kana): their words are pairs of neighboring characters."""

_RAISED = re.compile(r"(?<=\d)(?=[\u00b2\u00b3\u00b9\u2070-\u2089\u00bc-\u00be\u2150-\u215e])")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
_SCRIPTS = re.compile("(?<=[A-Za-z0-9])(?=[\u2e80-\u9fff])|(?<=[\u2e80-\u9fff])(?=[A-Za-z0-9])")
"""Where a word without spaces around it meets a figure or a Latin word."""

_FIGURE = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
_LONGEST_FIGURE = 30
"""Figures with more characters are compared as they are written."""

_GROUPS = re.compile(
    r"[1-9](?<![\w.,:/@'\u2019+][1-9])(?<![0-9] [1-9])(?<!\w-[1-9])[0-9]{0,2}(?: [0-9]{3})++(?!\w| [0-9]|[.,][0-9]{3})"
)
"""Groups of three with a space between them, `1 000 000`, and no other figure before or behind them. The looks back
let only the first figure of a row begin, and nothing is given back, so the search is linear."""


def plain_figures(text: str) -> str:
    """A text in Unicode's form NFKC whose figures are ASCII and stand apart from exponents and unspaced letters.

    `10\u00b2` becomes `10 2`, `3\u00bd` becomes `3 1\u20442`, and a year before its Han letter a word of its own.
    """
    if text.isascii():
        return text
    parted = unicodedata.normalize("NFKC", _RAISED.sub(" ", text))
    ascii_figures = _OTHER_DIGIT.sub(lambda match: str(unicodedata.decimal(match.group())), parted)
    return _SCRIPTS.sub(" ", ascii_figures.translate({0x66B: ".", 0x66C: ","}))


def join_figures(text: str) -> str:
    """A text as `plain_figures` returns it without the spaces that part thousands."""
    return _GROUPS.sub(lambda match: match.group().replace(" ", ""), text)


def read_numbers(words: Sequence[Word]) -> tuple[frozenset[str], set[int]]:
    """The numbers of a text, and the places of the words that spell them.

    Args:
        words: The words of one text.
    """
    reader = _Reader()
    places: set[int] = set()
    for place, word in enumerate(words):
        folded = word.folded
        if not reader.is_reading and word.is_plain and folded not in _NUMBER_WORDS:
            continue
        follower = words[place + 1] if place + 1 < len(words) else None
        if folded in SCALES:
            reader.scale(SCALES[folded])
        elif folded in DIGIT_WORDS and (
            folded != "one" or reader.is_reading or (follower is not None and follower.folded in SCALES)
        ):
            # `one` is mostly a pronoun: it counts only in a longer number, as in `one million`.
            reader.word(DIGIT_WORDS[folded], joined=word.spaced)
        elif folded == "and" and word.spaced and follower is not None and reader.goes_on(follower):
            continue
        else:
            reader.finish()
            figure = _FIGURE.match(word.text) if not folded.isalpha() else None
            if figure is None:
                continue
            if not word.numbers_line and UNSPACED.search(word.text) is None:
                reader.figure(figure.group(), word.negative)
        places.add(place)
    reader.finish()
    return frozenset(reader.found), places


class _Reader:
    """Puts the words of a number together: `large` thousands and more, `hundreds`, and `small`, which is below them.

    Attributes:
        found: The numbers that are finished.
        is_reading: Whether there is one that is not.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self._start()

    def _start(self, small: Decimal | None = None, room: int = 0, in_figures: bool = False) -> None:
        self._large, self._hundreds, self._small = Decimal(0), Decimal(0), small
        self._least = 0  # the smallest scale in `large`; 0 for none
        self._room = room  # a word joins if its value is below
        self._in_figures = in_figures  # only scales join, as in `1.5 million`
        self._after_and = False  # `small` came behind `and`
        self.is_reading = small is not None

    def finish(self) -> None:
        """End a number, if there is one."""
        if self.is_reading:
            self.found.append(_spelled(self._large + self._hundreds + (self._small or 0)))
        self._start()

    def figure(self, figure: str, negative: bool) -> None:
        """Begin a number in figures."""
        value = _read_figure(figure, negative, self.found)
        if value is not None:
            self._start(value, in_figures=True)

    def word(self, value: int, *, joined: bool) -> None:
        """A word below a hundred; `joined` if only a space or hyphen parts it from the word before."""
        room = 10 if value >= 20 else 0
        if joined and 0 < value < self._room:
            self._small, self._room = (self._small or Decimal(0)) + value, room
        else:
            self.finish()
            self._start(Decimal(value), room)

    def goes_on(self, follower: Word) -> bool:
        """Whether an `and` belongs to the number: behind a scale, before a word below a hundred."""
        if self._room < 100 or not follower.spaced or DIGIT_WORDS.get(follower.folded, 0) == 0:
            return False
        self._after_and = True
        return True

    def scale(self, scale: int) -> None:
        """`hundred`, `thousand` and so on: multiplies what stands before it in its group."""
        if self._large + self._hundreds > _LARGEST:
            self.finish()
        self._part(scale)
        if scale > 100:
            group = self._hundreds + (self._small or 0)
            if self._hundreds or self._small is not None:
                self._large += group * scale
            else:
                self._large = (self._large or Decimal(1)) * scale
            self._hundreds, self._least = Decimal(0), scale
        elif self._small is None and self.is_reading:  # `a thousand hundred`
            self._large, self._hundreds = 100 * self._large, 100 * self._hundreds
        else:
            self._hundreds = 100 * (Decimal(1) if self._small is None else self._small)
        self._small, self._after_and, self.is_reading = None, False, True
        self._room = 0 if self._in_figures else 100

    def _part(self, scale: int) -> None:
        """End a number where the scale opens another one: `one hundred | and two hundred`."""
        small = self._small
        if scale == 100 and small is not None and self._hundreds:
            self._small = None
            self.finish()
            self._start(small)
        elif self._least and (small is not None or self._hundreds):
            group = scale if scale > 100 else 100 * (small or 0)
            if group >= self._least or (self._after_and and not self._hundreds):
                self.found.append(_spelled(self._large))
                self._large, self._least = Decimal(0), 0


def _read_figure(figure: str, negative: bool, found: list[str]) -> Decimal | None:
    groups = figure.split(",")
    if len(groups) > 1 and all(len(group.split(".")[0]) == 3 for group in groups[1:]):
        figure = "".join(groups)
    elif len(groups) == 2 and "." not in figure:
        figure = ".".join(groups)
    if figure.count(".") > 1 or "," in figure or len(figure) > _LONGEST_FIGURE:
        found.append(figure)
        return None
    return -Decimal(figure) if negative else Decimal(figure)


def _spelled(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
