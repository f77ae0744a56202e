r"""What every reward reads out of a completion: its answer, or why it has none that may be judged.

TRL hands a completion over as a text or as a list of messages. One parser (`prompts.parse_completion`) and one set of
guards (`guards.violation`) serve all rewards, and one completion is read once however many rewards ask for it::

    "<think>Both ask about tides.</think>\n<answer>Q: ...</answer>"   ->   Reading("Q: ...", None)
    "<answer>Q: ...</answer>"                                         ->   Reading(None, "malformed")
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hf_lmmixup.guards import violation
from hf_lmmixup.prompts import THINK_CLOSE, THINK_OPEN, parse_completion


MALFORMED = "malformed"
REMEMBERED = 8192
"""Readings that are kept: more than the completions of one step."""


@dataclass(frozen=True)
class Reading:
    """A completion as the rewards see it.

    Attributes:
        answer: The text inside `<answer>`; `None` if the completion is malformed.
        fault: `malformed`, the name of the guard that the answer trips, or `None`.
    """

    answer: str | None
    fault: str | None


def read_completions(
    completions: Sequence[Any],
    sources: Sequence[Sequence[str] | None] | None = None,
    reference: Sequence[str | None] | None = None,
) -> list[Reading]:
    """Read completions, each against its sources and its reference where there are any.

    Raises:
        ValueError: If a column has another length than the completions.
    """
    rows = len(completions)
    clusters, wanted = column(sources, rows, "sources"), column(reference, rows, "reference")
    return [
        _read(completion_text(completion), tuple(cluster or ()), text)
        for completion, cluster, text in zip(completions, clusters, wanted, strict=True)
    ]


def column(values: Sequence[Any] | None, rows: int, name: str) -> list[Any]:
    """A column as a list with one entry for each completion; a missing column is all `None`."""
    if values is None:
        return [None] * rows
    if len(values) != rows:
        raise ValueError(f"The column {name!r} has {len(values)} entries for {rows} completions.")
    return list(values)


def completion_text(completion: Any) -> str:
    """The text of a completion: a string, or the content of the last message of a conversation.

    Where a tokenizer has a `response_template`, TRL parts the reasoning from the content; here it is put back.
    """
    if isinstance(completion, (list, tuple)):
        completion = completion[-1] if completion else ""
    content = completion.get("content") if isinstance(completion, dict) else completion
    if isinstance(content, (list, tuple)):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        return ""
    reasoning = completion.get("reasoning_content") if isinstance(completion, dict) else None
    return f"{THINK_OPEN}{reasoning}{THINK_CLOSE}\n{content}" if isinstance(reasoning, str) else content


def source_texts(prompt: Any) -> list[str]:
    """The cluster of a prompt without the column `sources`: its user message, less the instruction at the end."""
    return list(_parts(completion_text(prompt)))


@lru_cache(maxsize=REMEMBERED)  # every reward asks for them, and all completions of a prompt share them
def _parts(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split("\n\n")[:-1] if part and not part.isspace())


@lru_cache(maxsize=REMEMBERED)
def _read(text: str, sources: tuple[str, ...], reference: str | None) -> Reading:
    parsed = parse_completion(text)
    if parsed is None:
        return Reading(None, MALFORMED)
    return Reading(parsed.answer, violation(parsed.answer, sources=sources, reference=reference))
