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
        ValueError: If a column has another length than the completions, or holds something else than texts.
    """
    rows = len(completions)
    clusters, wanted = cluster_column(sources, rows), reference_column(reference, rows)
    return [
        _read(completion_text(completion), cluster, text)
        for completion, cluster, text in zip(completions, clusters, wanted, strict=True)
    ]


def column(values: Sequence[Any] | None, rows: int, name: str) -> list[Any]:
    """A column as a list with one entry for each completion; a missing column is all `None`."""
    if values is None:
        return [None] * rows
    if len(values) != rows:
        raise ValueError(f"The column {name!r} has {len(values)} entries for {rows} completions.")
    return list(values)


def reference_column(values: Sequence[Any] | None, rows: int) -> list[str | None]:
    """The references as texts, `None` where there is none or an empty one.

    Raises:
        ValueError: If one is no text, or the number of rows differs.
    """
    found = column(values, rows, "reference")
    for value in found:
        if value is not None and not isinstance(value, str):
            raise ValueError(f"The column 'reference' holds {str(value)[:80]!r}. Expected a text in each row.")
    return [value if value and not value.isspace() else None for value in found]


def cluster_column(values: Sequence[Any] | None, rows: int) -> list[tuple[str, ...]]:
    """The sources as texts, empty where there are none.

    Raises:
        ValueError: If those of a row are no list of texts, or the number of rows differs.
    """
    clusters: list[tuple[str, ...]] = []
    for value in column(values, rows, "sources"):
        is_list = value is None or isinstance(value, (list, tuple))
        cluster = tuple(text for text in value or () if text is not None) if is_list else (value,)
        if not is_list or not all(isinstance(text, str) for text in cluster):
            raise ValueError(f"The column 'sources' holds {str(value)[:80]!r}. Expected a list of texts in each row.")
        clusters.append(cluster)
    return clusters


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
    if reasoning is None and isinstance(completion, dict) and THINK_OPEN not in content:
        reasoning = completion.get("thinking")  # its name for LFM2.5; beside gpt-oss's, the content has a `<think>`
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
