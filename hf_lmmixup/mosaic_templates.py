"""The sentences and marks that mosaics are written with, read from a JSON file per language.

`templates/mosaic_en.json` is the bundled one; another language is another file of the same form::

    {"numbers": ["{n}.", ...], "wrappers": [["[START]", "[STOP]"], ...], "sequences": [", ", ...],
     "phrases": {"intro": ["Here are {count} tasks.", ...], "order_reverse": [...], "mask_odd": [...], ...}}

`numbers` are the ways to number an instruction and its answer, `wrappers` the marks before and after an answer,
`sequences` what stands between the numbers of a list, `phrases` the meta-instructions by type. Every type needs eight
phrasings, and each may name only what is known about it, for example `{open}` and `{close}` in `wrapped`.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

from hf_lmmixup.mosaic_config import MASKS, ORDERS


FOLDER = Path(__file__).parent / "templates"

PLACEHOLDERS = {
    "intro": {"count"},
    "numbered": set(),
    "wrapped": {"open", "close"},
    "again": set(),
    "ties": set(),
    **{f"order_{order}": {"sequence"} if order == "given" else set() for order in ORDERS},
    "mask_given": {"sequence"},
    "mask_longest": {"count"},
    "mask_shortest": {"count"},
    **{f"mask_{mask}": set() for mask in MASKS if mask in ("odd", "even")},
}
"""Phrase type -> the placeholders that each phrasing must have, no more and no fewer."""

FEWEST_PHRASINGS = 8


@dataclass(frozen=True)
class Templates:
    """The contents of one template file.

    Attributes:
        numbers: Ways to number, each with one `{n}`.
        wrappers: Pairs of marks.
        sequences: Separators of a list of numbers.
        phrases: Type -> phrasings.
    """

    numbers: tuple[str, ...]
    wrappers: tuple[tuple[str, str], ...]
    sequences: tuple[str, ...]
    phrases: dict[str, tuple[str, ...]]


@lru_cache(maxsize=8)
def load_templates(name: str = "en") -> Templates:
    """Read and check a template file.

    Args:
        name: A bundled language, or the path of a JSON file.

    Returns:
        The templates.

    Raises:
        ValueError: If the file does not exist, is not JSON, or breaks a rule; the message names the place.
    """
    path = Path(name) if name.endswith(".json") else FOLDER / f"mosaic_{name}.json"
    if not path.is_file():
        bundled = sorted(file.stem.removeprefix("mosaic_") for file in FOLDER.glob("mosaic_*.json"))
        raise ValueError(f"No mosaic templates at {name!r}. Bundled: {bundled}; for others give a path in .json.")
    try:
        content = json.loads(path.read_bytes())  # in UTF-8 or 16, with or without a byte order mark
        templates = Templates(
            numbers=tuple(content["numbers"]),
            wrappers=tuple((opening, closing) for opening, closing in content["wrappers"]),
            sequences=tuple(content["sequences"]),
            phrases={kind: tuple(phrasings) for kind, phrasings in content["phrases"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} has not the form of a mosaic template file: {why}.") from error
    for problem in _problems(templates):
        raise ValueError(f"{path}: {problem}")
    return templates


def _problems(templates: Templates) -> list[str]:
    """What is wrong with templates, in sentences; the first is reported."""
    problems = [f"the number {text!r} needs {{n}} exactly once" for text in templates.numbers if not _is_number(text)]
    for opening, closing in templates.wrappers:
        if not opening.strip() or not closing.strip() or opening in closing or closing in opening:
            problems.append(f"the wrapper {[opening, closing]} needs two marks of which none holds the other")
    problems += [f"the separator {text!r} holds a digit" for text in templates.sequences if _has_digit(text)]
    if not (templates.numbers and templates.wrappers and templates.sequences):
        problems.append("numbers, wrappers and sequences must not be empty")
    if unlike := sorted(set(PLACEHOLDERS) ^ set(templates.phrases)):
        problems.append(f"the phrase types {unlike} are missing or unknown. Expected {list(PLACEHOLDERS)}")
    for kind, phrasings in templates.phrases.items():
        if len(set(phrasings)) < FEWEST_PHRASINGS:
            problems.append(f"{kind} needs {FEWEST_PHRASINGS} different phrasings and has {len(set(phrasings))}")
        for phrase in phrasings:
            if _placeholders(phrase) != PLACEHOLDERS.get(kind, set()):
                problems.append(
                    f"{kind}: {phrase!r} must use {sorted(PLACEHOLDERS.get(kind, set()))} and nothing else"
                )
    return problems


def _is_number(text: Any) -> bool:
    return isinstance(text, str) and text.count("{n}") == 1 and not _has_digit(text)


def _has_digit(text: str) -> bool:
    return not text or any(character.isdigit() for character in text)


def _placeholders(phrase: str) -> set[str] | None:
    try:
        return {name for _, name, form, conversion in Formatter().parse(phrase) if name is not None}
    except ValueError:
        return None
