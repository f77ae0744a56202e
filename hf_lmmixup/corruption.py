r"""Seeded, named ways to spoil a good text.

Weak variants for MIXTURE come from a chat model, from a careless hand, or from here. Each corruption is a plain
function `(text, *, seed, ...) -> str`: the same arguments give the same text on every machine and Python version.
Only `random.Random(seed).random()` is drawn from, the one stream that Python promises to keep. One row::

    >>> drop_reasoning("Q: Why do tides occur?\nA: The Moon pulls the oceans. The near side is pulled more.", seed=0)
    'Q: Why do tides occur?\nA: The Moon pulls the oceans.'

Labels of the five task types (`Q:`, `A)`, `Statement:` ...) survive every corruption except a truncation that cuts
them off, and no corruption turns a true sentence into a false one: a weak text is poor, not wrong. Kinds of weakness
follow the construction of MIXTURE (arXiv 2510.20449): less information, less reasoning, mixed topics, surface noise.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hf_lmmixup.wording import LABELS, split_form, split_sentences


VERDICTS = frozenset(["true", "false", "not", "no", "never", "none", "only"])
"""Words whose loss would turn the truth round."""

VAGUE_TERMS, VAGUE_NUMBERS = ("something", "stuff", "certain things", "that kind of thing"), ("some", "a number of")
VAGUE_LENGTH = 7
"""Words with this many letters count as specific terms for `vague`, unless they end in -ly or are among `JOINTS`."""

JOINTS = frozenset("because between through without against another however although whether".split())
REASON_MARKS = tuple(" because | since | so that |, so |, which |; | thus | therefore |, as | by ".split("|"))
"""Where an explanation starts inside a sentence, in the order in which they are tried."""

STRAY_JOINTS = ("By the way,", "Also,", "Another thing:", "Which reminds me,")
"""How a careless hand changes the subject."""
_Option = TypeVar("_Option")
_TOKENS = re.compile(r"\s+|\S+")


def truncate(text: str, *, seed: int, keep: float = 0.55, side: str = "end", jitter: float = 0.1) -> str:
    """Cut the text off in the middle of a sentence.

    Args:
        text: What to spoil.
        seed: Moves the cut by up to `jitter` either way.
        keep: Share of the words that stays, in (0, 1).
        side: `end` loses the last words, `start` the first ones (labels there included).
        jitter: Share of the words by which the cut moves at most.

    Returns:
        The shorter text; a text of one word is returned as it is.

    Raises:
        ValueError: If `keep` or `side` is none of those.
    """
    if not 0 < keep < 1:
        raise ValueError(f"keep={keep!r} must lie between 0 and 1, both excluded.")
    if side not in ("end", "start"):
        raise ValueError(f"side={side!r} must be 'end' or 'start'.")
    tokens = _TOKENS.findall(text.strip())
    words = (len(tokens) + 1) // 2
    share = keep + 2 * jitter * (random.Random(seed).random() - 0.5)
    kept = min(max(1, round(words * share)), max(1, words - 1))
    part = tokens[: 2 * kept - 1] if side == "end" else tokens[-(2 * kept - 1) :]
    return "".join(part).rstrip(".,;:") or text


def typos(text: str, *, seed: int, rate: float = 0.3) -> str:
    """Misspell words: swap, drop or double a letter inside words of four and more letters.

    Args:
        text: What to spoil.
        seed: Chooses words and letters.
        rate: Expected share of the long words that are misspelled, in (0, 1]; one word at least is, if there is one.

    Returns:
        The text with the same number of words.

    Raises:
        ValueError: If `rate` lies outside (0, 1].
    """
    _check_rate(rate)
    rng = random.Random(seed)
    tokens = _TOKENS.findall(text)
    places = [i for i, token in enumerate(tokens) if _is_plain(token) and sum(map(str.isalpha, token)) >= 4]
    for place in _choose(rng, places, rate):
        tokens[place] = _misspell(tokens[place], rng)
    return "".join(tokens)


def vague(text: str, *, seed: int, rate: float = 0.7) -> str:
    """Replace figures, names and long words by empty ones; a run of replaced words becomes one.

    Args:
        text: What to spoil.
        seed: Chooses words and their replacements.
        rate: Expected share of the specific words that are lost, in (0, 1]; at least one is, if there is one.

    Returns:
        The vaguer text.

    Raises:
        ValueError: If `rate` lies outside (0, 1].
    """
    _check_rate(rate)
    rng = random.Random(seed)
    tokens = _TOKENS.findall(text)
    places = [i for i, token in enumerate(tokens) if _is_specific(token, tokens[i - 2] if i > 1 else "")]
    chosen = set(_choose(rng, places, rate))
    parts: list[str] = []
    for place, token in enumerate(tokens):
        if place not in chosen:
            parts.append(token)
            continue
        tail = token[len(token.rstrip(".,;:?!)")) :]
        if place - 2 in chosen and not tokens[place - 2].endswith((".", ",", ";", ":", "?", "!")):
            parts.pop()  # the space before; the run already has its one empty word
            parts.append(tail)
        else:
            numeric = any(map(str.isdigit, token))
            empty = _pick(rng, VAGUE_NUMBERS if numeric else VAGUE_TERMS)
            opens = place < 2 or tokens[place - 2].endswith((".", "?", "!", ":"))
            parts.append((empty.capitalize() if opens else empty) + tail)
    return "".join(parts)


def drop_reasoning(text: str, *, seed: int, sentences: int = 1) -> str:
    """Keep what is claimed and lose why: only the first sentences of the last labeled part stay.

    Where nothing is lost that way, the part is cut before a word like "because", or loses its last third.

    Args:
        text: What to spoil.
        seed: Unused; accepted so that all corruptions have one form.
        sentences: How many sentences of the last part stay, 1 or more.

    Returns:
        The text without its explanation.

    Raises:
        ValueError: If `sentences` is below 1.
    """
    del seed
    if sentences < 1:
        raise ValueError(f"sentences={sentences!r} must be 1 or more.")
    head, body = split_form(text)
    parts = split_sentences(body)
    if len(parts) > sentences:
        return head + " ".join(parts[:sentences])
    for mark in REASON_MARKS:
        before, found, _ = body.partition(mark)
        if found and len(before.split()) >= 3:
            return f"{head}{before.rstrip('.,;')}."
    words = body.split()
    return head + " ".join(words[: max(1, len(words) * 2 // 3)])


def merge_topics(text: str, *, seed: int, other: str, keep: float = 0.4) -> str:
    """Mix in a piece of another text: some sentences of this one, and one that belongs elsewhere.

    Args:
        text: What to spoil.
        seed: Chooses which part stays, which sentence comes from `other`, and their order.
        other: A text on another topic; its labels are left out.
        keep: Share of the sentences of the last labeled part that stays, in (0, 1]; one at least.

    Returns:
        The mixed text, with the labels of `text`.

    Raises:
        ValueError: If `keep` lies outside (0, 1] or `other` holds no words.
    """
    _check_rate(keep, name="keep")
    rng = random.Random(seed)
    strangers = split_sentences(split_form(other)[1])
    strangers = [sentence for sentence in strangers if len(sentence.split()) >= 4] or strangers
    if not strangers:
        raise ValueError("merge_topics needs words of another text; `other` is empty.")
    head, body = split_form(text)
    own = split_sentences(body)
    if len(own) == 1:
        words = body.split()
        own = [" ".join(words[: max(1, round(len(words) * keep))]).rstrip(".,;:") + "."]
    else:
        count = min(len(own) - 1, max(1, round(len(own) * keep)))
        own = own[:count] if rng.random() < 0.5 else own[-count:]
    stranger = _pick(rng, strangers)
    own.insert(1 + int(rng.random() * len(own)), f"{_pick(rng, STRAY_JOINTS)} {stranger[0].lower()}{stranger[1:]}")
    return head + " ".join(own)


@dataclass(frozen=True)
class Corruption:
    """A corruption with what is known about it.

    Attributes:
        name: How data files and cards call it.
        apply: The function; takes the text, `seed=` and its own parameters.
        loss: How many classes the score drops when it is applied with its defaults.
    """

    name: str
    apply: Callable[..., str]
    loss: int


CORRUPTIONS = (
    Corruption("truncation", truncate, 3),
    Corruption("typos", typos, 2),
    Corruption("vague wording", vague, 4),
    Corruption("missing reasoning", drop_reasoning, 2),
    Corruption("cross-topic merging", merge_topics, 3),
)
"""All corruptions, in the order in which `names` lists them."""

WEAK_SCORE_CAP = 3
"""A spoilt text never counts as one of the high half, whatever it was made from."""


def names() -> tuple[str, ...]:
    """The names that `corrupt` takes."""
    return tuple(corruption.name for corruption in CORRUPTIONS)


def corrupt(text: str, name: str, *, seed: int, **parameters: object) -> str:
    """Apply one corruption by name.

    Args:
        text: What to spoil.
        name: One of `names()`.
        seed: Same seed, same text.
        **parameters: What the function behind the name takes besides; `merge_topics` needs `other`.

    Returns:
        The spoilt text.

    Raises:
        ValueError: If the name is unknown.
    """
    return _find(name).apply(text, seed=seed, **parameters)


def weak_score(target_score: int, name: str) -> int:
    """The score of a corrupted text: that of its original minus the corruption's `loss`, kept within 0..3.

    With defaults a target of score 5 gives 3 (typos, missing reasoning), 2 (truncation, cross-topic merging) and 1
    (vague wording); a target of score 4 one less each.
    """
    return max(0, min(WEAK_SCORE_CAP, target_score - _find(name).loss))


def _find(name: str) -> Corruption:
    if name not in names():
        raise ValueError(f"Unknown corruption {name!r}. Expected one of {list(names())}.")
    return CORRUPTIONS[names().index(name)]


def _check_rate(rate: float, name: str = "rate") -> None:
    if not 0 < rate <= 1:
        raise ValueError(f"{name}={rate!r} must be above 0 and at most 1.")


def _pick(rng: random.Random, options: Sequence[_Option]) -> _Option:
    return options[int(rng.random() * len(options))]


def _choose(rng: random.Random, places: Sequence[int], rate: float) -> list[int]:
    """Each place with the chance `rate`, but one at least."""
    return [place for place in places if rng.random() < rate] or ([_pick(rng, places)] if places else [])


def _is_plain(token: str) -> bool:
    """Whether a token is a word that may be changed: no label, no verdict, no space."""
    return token not in LABELS and not token.isspace() and token.strip(".,;:?!()").lower() not in VERDICTS


def _is_specific(token: str, previous: str) -> bool:
    """Whether a token is a figure, a name (upper case inside a sentence) or a long word."""
    core = token.strip(".,;:?!()\"'")
    if not _is_plain(token) or not core:
        return False
    named = core[0].isupper() and previous not in LABELS and not previous.endswith((".", "?", "!", ":")) and previous
    long = sum(map(str.isalpha, core)) >= VAGUE_LENGTH and not core.endswith("ly") and core.lower() not in JOINTS
    return any(map(str.isdigit, core)) or bool(named) or long


def _misspell(word: str, rng: random.Random) -> str:
    """Change one inner letter pair of a word; the first letter stays, so that the word can still be read."""
    spots = [i for i in range(1, len(word) - 1) if word[i].isalpha() and word[i + 1].isalpha()]
    if not spots:
        return word
    spot, kind = _pick(rng, spots), rng.random()
    if kind < 0.4 and word[spot] != word[spot + 1]:
        return word[:spot] + word[spot + 1] + word[spot] + word[spot + 2 :]
    if kind < 0.75:
        return word[:spot] + word[spot + 1 :]
    return word[:spot] + word[spot] + word[spot:]
