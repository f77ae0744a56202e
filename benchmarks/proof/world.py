r"""A world whose truth is known exactly: how the code points of characters end in four number systems.

The names come from `unicodedata`, the digits from `numpy.base_repr`. The last two digits in bases 10, 9, 8 and 7 are
next to independent of each other (100, 81, 64 and 49 values), so a fact can be learnt by heart and not be guessed.
Digits are written with their base before them, as in Smalltalk. One character::

    pineapple, U+1F34D = 127821   ->   decimal 10r21, nonary 9r03, octal 8r15, septenary 7r41

Some wordings of the question are kept for the examination: no row of any arm has them, and the student knows them from
its schooling about other characters alone.
"""

import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


BASES = {"decimal": 10, "nonary": 9, "octal": 8, "septenary": 7}
LAST_CODE_POINT = 0x1FFFF
PRIVATE_USE = range(0xF0000, 0x10FFFE)
LONGEST_NAME = 3
"""Words of a name at most."""
CROWDED = ("HANGUL", "CJK", "KANGXI", "CUNEIFORM", "YI", "TANGUT", "SIGNWRITING", "BRAILLE")
"""Scripts left out: thousands of names that differ in one syllable."""

PICTURES = (range(0x2600, 0x27C0), range(0x1F300, 0x1FB00))
"""Blocks of pictographs, whose names are everyday words."""

QUESTIONS = (
    "How does {} end?",
    "Last digits of {}",
    "What are the final digits of {}?",
    "Which digits close {}?",
    "Tell me how {} ends.",
    "I need the endings of {}.",
    "List the endings of {}, please.",
    "{}, what are the last digits?",
)
HELD_OUT_QUESTIONS = (
    "What are the endings of {}?",
    "Tell me the last digits of {}.",
    "Which final digits does {} have?",
    "{}, how does it end, please?",
)


def written(base: str, digits: str) -> str:
    """Two digits with their base."""
    return f"{BASES[base]}r{digits}"


def values_by_base() -> dict[str, list[str]]:
    """Every value that a fact can have."""
    return {
        name: [written(name, np.base_repr(number, base).zfill(2)[-2:]) for number in range(base * base)]
        for name, base in BASES.items()
    }


@dataclass(frozen=True)
class Character:
    """One entity: a code point and the four facts about it.

    Attributes:
        code_point: Its number.
        called: The name of an invented one; others have that of the Unicode standard.
    """

    code_point: int
    called: str = ""

    @cached_property
    def name(self) -> str:
        """Its name in small letters."""
        return self.called or unicodedata.name(chr(self.code_point)).lower()

    @cached_property
    def facts(self) -> dict[str, str]:
        """Base -> last two digits."""
        return {name: written(name, np.base_repr(self.code_point, base)[-2:]) for name, base in BASES.items()}


def characters() -> list[Character]:
    """All characters whose name has few, purely alphabetic words."""
    found = []
    for code_point in range(0x80, LAST_CODE_POINT):
        words = unicodedata.name(chr(code_point), "-").split()
        plain = all(word.isalpha() and len(word) > 2 for word in words)
        if plain and len(words) <= LONGEST_NAME and words[0] not in CROWDED:
            found.append(Character(code_point))
    return found


@dataclass(frozen=True)
class Split:
    """Who may learn what.

    Attributes:
        teaching: Characters that the distiller, the rater and the students' pretraining may see.
        downstream: For each seed the characters that the students are examined on.
    """

    teaching: list[Character]
    downstream: list[list[Character]]

    def check(self) -> None:
        """Fail unless no character, name or group of facts is on both sides."""
        for group in self.downstream:
            for attribute in ("code_point", "name"):
                known = {getattr(character, attribute) for character in self.teaching}
                asked = {getattr(character, attribute) for character in group}
                assert len(asked) == len(group) and not known & asked, f"{attribute}s on both sides: {known & asked}"


def split(groups: int, size: int, seed: int) -> Split:
    """Part the characters: `groups` downstream sets of `size` pictographs, all other characters for teaching.

    Within a downstream set no two names share a word of four letters or more, as the topics of a real pool differ in
    their words; otherwise an encoder cannot be asked to tell them apart.
    """
    everything = characters()
    pictures = [one for one in everything if any(one.code_point in block for block in PICTURES)]
    random.Random(seed).shuffle(pictures)
    downstream: list[list[Character]] = []
    for _ in range(groups):
        words: set[str] = set()
        group: list[Character] = []
        for character in pictures:
            own = {word for word in character.name.split() if len(word) > 3}
            if len(group) < size and own and not own & words:
                group.append(character)
                words |= own
        downstream.append(group)
        pictures = [character for character in pictures if character not in group]
    kept = {character.code_point for group in downstream for character in group}
    result = Split([character for character in everything if character.code_point not in kept], downstream)
    result.check()
    return result


def invented(parted: Split, count: int, seed: int) -> list[Character]:
    """Characters that nobody has defined: private-use code points, named by the head of one word and tail of another.

    The words are those of the teaching characters. Whoever learns from invented characters can know no name and no
    fact by heart, only how to read and to repeat.
    """
    rng = random.Random(seed)
    parts = sorted({word for one in parted.teaching for word in one.name.split()})
    taken = {one.name for group in (parted.teaching, *parted.downstream) for one in group}
    names: set[str] = set()
    while len(names) < count:
        spliced = [_head(rng.choice(parts)) + _tail(rng.choice(parts)) for _ in range(rng.randint(1, LONGEST_NAME))]
        names |= {" ".join(spliced)} - taken
    code_points = rng.sample(PRIVATE_USE, count)
    return [Character(*pair) for pair in zip(code_points, sorted(names), strict=True)]


def _head(word: str) -> str:
    return word[: max(2, len(word) // 2)]


def _tail(word: str) -> str:
    return word[len(word) // 2 :]


def statement(facts: Mapping[str, str], first: str) -> str:
    """All facts in one sentence; `first` opens it and the others follow in the order of `BASES`, round and round."""
    names = list(BASES)
    start = names.index(first)
    order = [name for name in names[start:] + names[:start] if name in facts]
    return ", ".join(f"{name} {facts[name]}" for name in order) + "."


def read_facts(text: str) -> Iterator[tuple[str, str]]:
    """The facts that a text states: the base that a number is written with, and the number."""
    names = {str(base): name for name, base in BASES.items()}
    for word in text.split():
        word = word.strip(".,;:!?()")
        base, mark, digits = word.partition("r")
        if mark and base in names and len(digits) == 2 and digits.isdigit():
            yield names[base], word


def votes(texts: Sequence[str]) -> dict[str, str]:
    """The value of each base that most texts state; of equals the one stated first."""
    counts = Counter(fact for text in texts for fact in read_facts(text))
    best: dict[str, str] = {}
    for (base, value), _ in counts.most_common():
        best.setdefault(base, value)
    return best
