r"""Which facts a text states, and which of them another text keeps or invents.

A distillation may rephrase, but it may not lose or make up a number, a name or a piece of code. Facts are read off
the surface of the text in one linear pass: no model, no dictionary, no expression that can backtrack. One text::

    >>> extract_facts("Q: Who wrote it?\nA: Ada Lovelace, in 1,843 words; call `run_it`.").hard
    frozenset({'lovelace', 'ada', '1843', 'run_it'})    # in any order

The idea follows entity- and number-overlap checks of summaries (arXiv 2104.13346 surveys them); the rules are our own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hf_lmmixup.numerals import UNSPACED, join_figures, plain_figures, read_numbers
from hf_lmmixup.words import Word, singular, split_words


STEM_LENGTH = 6
"""Content words are compared by their first letters: `discards`, `discarding` -> `discar`. Truncation is the plainest
stemmer, needs no language, and its confusions (`internal`, `international`) matter little in a rate."""

LABELS = frozenset("q a b c d s statement answer question".split())
"""Words that carry the form of a text; they are facts only where no colon or bracket follows."""

FUNCTION_WORDS = frozenset(
    """a about above after again against all almost along already also although always am among an and another any are
    around as at away be became because become been before being below between both but by came can could did do does
    done down during each either else enough even ever every few first for from further gave get gets give given gives
    go goes got had has have having he her here hers him his how however i if in instead into is it its itself just
    keep kept later least less let lets like made make makes many may me might mine more most much must my near need
    needs neither never no none nor not nothing now of off often on once one only onto or other others our out over own
    per perhaps put quite rather really same see seen several she should since so some something still such take taken
    takes than that the their them then there therefore these they thing things this those though through thus to too
    toward towards true false under unlike until up upon us use used uses using usually very was way we well went were
    what when where whether which while who whom whose why will with within without would yes yet you your""".split()
)
"""Words that state no fact by themselves; also words that often open a sentence and are no names there."""


@dataclass(frozen=True)
class Facts:
    """What one text states, case-folded.

    Attributes:
        numbers: Figures and number words in one spelling: `1,000`, `1 000`, `1000.0`, `one thousand` are all `1000`.
        names: Words that are written like names: capitals inside a sentence, acronyms, letters mixed with figures.
        code: Identifiers inside backticks, and outside them words with an underscore or directly before a bracket.
        words: Stems of the other words that carry content.
        tokens: Every word of the text: what supports a name or an identifier of another text.
    """

    numbers: frozenset[str]
    names: frozenset[str]
    code: frozenset[str]
    words: frozenset[str]
    tokens: frozenset[str]

    @property
    def hard(self) -> frozenset[str]:
        """Numbers, names and code: what must not be lost or invented."""
        return self.numbers | self.names | self.code


@lru_cache(maxsize=256)  # a row and its sources are asked for several rates, one after the other
def extract_facts(text: str) -> Facts:
    """Read the facts of a text in time linear in its length.

    Args:
        text: Any text.

    Returns:
        Its facts; all sets are empty for a text without words.
    """
    words = split_words(join_figures(plain_figures(text)))
    numbers, number_places = read_numbers(words)
    code = set()
    certain = {word.single for word in words if not word.is_plain and _is_certain_name(word)}
    prose = {word.single for place, word in enumerate(words) if word.is_prose and place not in number_places}
    names = prose & certain
    content = {stem(one) for one in prose - certain - FUNCTION_WORDS if len(one) > 2}
    tokens = {word.single for word in words if word.is_prose}
    for place, word in enumerate(words):
        if word.is_prose:
            continue
        if not word.text.isascii() and UNSPACED.search(word.text):
            pairs = [word.text[i : i + 2] for i in range(max(1, len(word.text) - 1))]
            content.update(pairs)
            tokens.update(pairs)
            continue
        folded = word.single
        tokens.add(folded)
        if place in number_places or (word.is_label and folded in LABELS):
            continue
        if word.before_bracket or "_" in folded.strip("_") or (word.in_code and folded not in FUNCTION_WORDS):
            code.add(folded)
        elif folded in certain or (not word.is_plain and _is_double_name(words, place)):
            names.add(folded)
        elif len(folded) > 2 and folded not in FUNCTION_WORDS:
            content.add(stem(folded))
    return Facts(numbers, frozenset(names), frozenset(code), frozenset(content), frozenset(tokens))


def merged_facts(texts: Iterable[str]) -> Facts:
    """The facts that at least one of some texts states."""
    parts = [extract_facts(text) for text in texts]
    return Facts(*(frozenset().union(*(getattr(part, kind) for part in parts)) for kind in Facts.__annotations__))


def novel_facts(answer: str, sources: Sequence[str]) -> list[str]:
    """The numbers, names and identifiers of an answer that no source supports, sorted.

    A number needs the same number in a source; a name or an identifier needs the same word there, in any case.
    """
    stated, known = extract_facts(answer), merged_facts(sources)
    return sorted((stated.numbers - known.numbers) | ((stated.names | stated.code) - known.tokens))


def novelty(answer: str, sources: Sequence[str]) -> float | None:
    r"""The share of an answer's hard facts that no source supports.

    $$\text{novelty} = |H(a) \setminus \text{supported}(S)| \,/\, |H(a)|$$ with `H` the numbers, names and code.

    Args:
        answer: The distilled text.
        sources: The texts that it was distilled from.

    Returns:
        A rate in [0, 1], 0 for a faithful answer; `None` if the answer has no hard fact to check.
    """
    stated = extract_facts(answer).hard
    return len(novel_facts(answer, sources)) / len(stated) if stated else None


def coverage(answer: str, sources: Sequence[str]) -> float | None:
    r"""How much of what the sources state the answer keeps.

    The mean of two shares, each left out if the sources have nothing of the kind: hard facts of the sources that the
    answer has, and content words of the sources that the answer has. A copy of all sources has 1.0 and an empty answer
    0.0; a good distillation lies below 1 because it drops chatter too.

    Args:
        answer: The distilled text.
        sources: The texts that it was distilled from.

    Returns:
        A rate in [0, 1]; `None` if the sources state nothing that can be counted.
    """
    known, stated = merged_facts(sources), extract_facts(answer)
    shares = []
    if known.hard:
        kept = known.numbers & stated.numbers | (known.names | known.code) & stated.tokens
        shares.append(len(kept) / len(known.hard))
    if known.words:
        shares.append(len(known.words & (stated.words | set(map(stem, stated.tokens)))) / len(known.words))
    return sum(shares) / len(shares) if shares else None


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """The first letters of a case-folded word, without the s of a plural or genitive."""
    return singular(word)[:STEM_LENGTH]


def _is_certain_name(word: Word) -> bool:
    """Written like a name whatever the place: an acronym, letters with figures, or a capital inside a sentence."""
    text = word.text
    if word.is_plain or word.in_code or len(text) < 2 or text[0].isdigit() or word.folded in FUNCTION_WORDS:
        return False
    if sum(map(str.isupper, text)) > 1 or any(map(str.isdigit, text)):
        return True
    return text[0].isupper() and (not word.opens or text.endswith(("'s", "\u2019s")))


def _is_double_name(words: Sequence[Word], place: int) -> bool:
    """A capital that opens a sentence is a name if the next word has one too: `Ada Lovelace wrote ...`."""
    word, after = words[place], words[place + 1 : place + 2]
    if not after or not after[0].spaced or not word.text[0].isupper() or len(word.text) < 2:
        return False
    return _is_certain_name(after[0]) and word.folded not in FUNCTION_WORDS
