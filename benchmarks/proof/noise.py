r"""What real pools do to facts: several weak rows for each character, each wrong or poor in its own way.

Most rows come from a careless hand, a few from a careful one. Where the kinds of noise come from:

* partial answers, and answers that name something without saying it: the two commonest flaws that GPT-based filters
  find in Alpaca, of whose 52,000 rows only 9,229 reach a score of 4.5 of 5 (AlpaGasus, arXiv 2307.08701);
* wrong values: figures copied from the next line, the next column or with one digit mistaken, the slips that studies
  of manual data entry count (Barchard and Pace 2011, doi 10.1016/j.chb.2011.04.004); here a slip costs
  the whole fact, and `WRONG` of a careless row's facts are wrong;
* answers cut off by a token limit, misspelt words, stray sentences of another subject: `hf_lmmixup.corruption`;
* politeness around the answer, as in shared conversations with assistants.

One row::

    {"prompt": "Give the last digits of pineapple.", "completion": "Sure! octal: 8r15, decimal is 10r12",
     "code_point": 127821, "question": 1, "is_careful": False, "score": 1}
"""

import random
from collections.abc import Sequence
from typing import Any

from benchmarks.proof.world import BASES, QUESTIONS, Character, read_facts, statement, written
from hf_lmmixup.corruption import corrupt
from hf_lmmixup.records import pair_text, row_id


ROWS = 10
"""Rows of a character."""
CAREFUL = 0.1
"""Share of careful rows: AlpaGasus keeps 9,229 of 52,002."""
WRONG, CAREFUL_WRONG = 0.35, 0.1
"""Share of wrong values."""
STATED = {1: 0.25, 2: 0.45, 3: 0.2, 4: 0.1}
"""How many of the four facts a careless row states."""
SURFACE = {None: 0.6, "truncation": 0.12, "typos": 0.12, "vague wording": 0.08, "cross-topic merging": 0.08}
"""What else happens to a careless row."""

CLAUSES = ("{} {}", "{}: {}", "{} is {}")
OPENINGS = ("", "", "", "", "{}: ", "{}: ", "{}: ", "Sure! ", "Well, ", "I think ", "Here you go: ")
CLOSINGS = ("", "", "", ".", ".", ", hope this helps.")


def weak_rows(characters: Sequence[Character], seed: int, rows: int = ROWS) -> list[dict[str, Any]]:
    """The raw pool of these characters: `rows` rows of each, shuffled; rows with the same text are one."""
    rng = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    for character in characters:
        for _ in range(rows):
            row = weak_row(character, characters, rng)
            found.setdefault(row["id"], row)
    pool = list(found.values())
    rng.shuffle(pool)
    return pool


def weak_row(character: Character, others: Sequence[Character], rng: random.Random) -> dict[str, Any]:
    """One row about a character; slips may bring in the facts of the `others`."""
    question, careful = rng.randrange(len(QUESTIONS)), rng.random() < CAREFUL
    prompt = QUESTIONS[question].format(character.name)
    surface = None
    if careful:
        facts = _told(character, others, CAREFUL_WRONG, list(BASES), rng)
        completion = statement(facts, rng.choice(list(BASES)))
    else:
        count = _draw(STATED, rng)
        facts = _told(character, others, WRONG, rng.sample(list(BASES), count), rng)
        surface = _draw(SURFACE, rng)
        completion = _spoilt(_careless(character.name, facts, rng), surface, others, rng)
    right = sum(character.facts[base] == value for base, value in set(read_facts(completion)))
    score = max(0, round(5 * right / len(BASES)) - (surface is not None))
    return {
        "id": row_id(prompt, completion),
        "prompt": prompt,
        "completion": completion,
        "source": "characters",
        "code_point": character.code_point,
        "question": question,
        "is_careful": careful,
        "score": score,
    }


def row_text(row: dict[str, Any]) -> str:
    """A row as the pipeline reads it."""
    return pair_text(row["prompt"], row["completion"])


def _told(
    character: Character, others: Sequence[Character], wrong: float, bases: Sequence[str], rng: random.Random
) -> dict[str, str]:
    facts = character.facts
    return {base: _slip(base, facts, others, rng) if rng.random() < wrong else facts[base] for base in bases}


def _slip(base: str, facts: dict[str, str], others: Sequence[Character], rng: random.Random) -> str:
    """A wrong value: one digit mistaken (half of the time), the value of another column, or of another line."""
    kind, own = rng.random(), facts[base].partition("r")[2]
    if kind < 0.5:
        place = rng.randrange(2)
        digit = rng.choice([digit for digit in "0123456789"[: BASES[base]] if digit != own[place]])
        return written(base, own[:place] + digit + own[place + 1 :])
    if kind < 0.75:
        other = rng.choice([name for name in BASES if name != base])
        return written(base, facts[other].partition("r")[2])
    return rng.choice(others).facts[base]


def _careless(name: str, facts: dict[str, str], rng: random.Random) -> str:
    clauses = [rng.choice(CLAUSES).format(base, value) for base, value in facts.items()]
    return rng.choice(OPENINGS).format(name) + ", ".join(clauses) + rng.choice(CLOSINGS)


def _spoilt(text: str, surface: str | None, others: Sequence[Character], rng: random.Random) -> str:
    if surface is None:
        return text
    options: dict[str, Any] = {}
    if surface == "cross-topic merging":
        stranger = rng.choice(others)
        base = rng.choice(list(BASES))
        options = {"other": f"{stranger.name} ends in {stranger.facts[base]} in {base}.", "keep": 1.0}
    return corrupt(text, surface, seed=rng.randrange(2**32), **options)


def _draw(weights: dict[Any, float], rng: random.Random) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]
