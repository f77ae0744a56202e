"""How good distillations are: every completion of a test split scored, averaged per task type, systems side by side.

The numbers of one system, as they stand in JSON::

    {"system": "GRPO", "rows": 45, "answered": 45, "means": {"format": 0.93, "quality": 0.21, "rouge_l": 0.41, ...},
     "judged": {"format": 45, "quality": 43, ...}, "task_types": {"qa": {"rows": 9, "means": {...}, ...}, ...}}

A score that could not be given is `None`: it is left out of the mean, never averaged as 0, and `judged` says how many
were given. A malformed completion is no missing judgement: it earns 0, as it does from the rewards; it has no length
and no rating.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lmmixup.chat_model import ChatModel, ChatRequest
from hf_lmmixup.dispatch import ask_all
from hf_lmmixup.figures import given_scores, score_text, score_title
from hf_lmmixup.held_out import REWARDS
from hf_lmmixup.journal import Journal
from hf_lmmixup.overlap import TokenEncoder, check_rouge, rouge_l
from hf_lmmixup.process_environment import variables
from hf_lmmixup.prompts import parse_completion
from hf_lmmixup.rating import JOURNAL_FILE
from hf_lmmixup.rating_prompt import FOUR_AXES, REPEAT_NOTE
from hf_lmmixup.records import Rating, TaskType


Columns = dict[str, list[float | None]]
"""Score -> its value for each completion."""


def score_completions(
    completions: Sequence[str | None],
    *,
    task_types: Sequence[str],
    references: Sequence[str | None],
    sources: Sequence[Sequence[str] | None],
    environment: Mapping[str, str] | None = None,
    token_encoder: TokenEncoder | None = None,
) -> Columns:
    """Score completions one by one.

    Args:
        completions: What was written (n); `None` where nothing was.
        task_types: Their task types (n).
        references: The excellent texts (n); without one, what compares with it is `None`.
        sources: The weak texts of each (n); without them, coverage is `None`.
        environment: The `HF_LMMIXUP_*` variables that the rewards shall see.
        token_encoder: For the token similarity; `None` leaves it out.

    Returns:
        The rewards, `rouge_l`, `token_similarity` and `length`, each with n values.

    Raises:
        ValueError: If the lengths differ, a task type is unknown, or the sources of a completion are one text.
        ImportError: If the `report` extra is missing.
    """
    rows = len(completions)
    for name, column in (("task_types", task_types), ("references", references), ("sources", sources)):
        if len(column) != rows:
            raise ValueError(f"{name} has {len(column)} entries for {rows} completions; give one each.")
    if any(isinstance(weak, str) for weak in sources):
        raise ValueError("sources has a text where a list of texts is needed: give the weak texts of each completion.")
    check_rouge()
    texts = [text or "" for text in completions]
    columns: Columns = {}
    with variables(environment or {}):
        for name, reward in REWARDS.items():
            columns[name] = reward(
                completions=texts, task_type=list(task_types), reference=list(references), sources=list(sources)
            )
    parsed = [parse_completion(text) for text in texts]
    answers = [None if found is None else found.answer for found in parsed]
    columns["rouge_l"] = _against_references(
        answers, references, lambda some, wanted: [rouge_l(*pair) for pair in zip(some, wanted, strict=True)]
    )
    if token_encoder is not None:
        columns["token_similarity"] = _against_references(answers, references, token_encoder.similarity)
    columns["length"] = [None if answer is None else float(len(answer)) for answer in answers]
    return columns


def rate_completions(
    completions: Sequence[str | None], task_types: Sequence[str], chat_model: ChatModel, folder: str | Path
) -> list[float | None]:
    """Let a chat model score answers from 0 to 5, as it does raw rows; its journal is read before it is asked again.

    Args:
        completions: What was written (n).
        task_types: Their task types (n).
        chat_model: Who rates.
        folder: Where `ratings.journal` is kept.

    Returns:
        The scores (n); `None` for malformed completions and where no readable rating came.

    Raises:
        ModelStopped: If the model will not answer any more.
    """
    parsed = [parse_completion(text or "") for text in completions]
    keys = [
        None
        if found is None
        else hashlib.sha256(f"{kind}\n{found.answer}".encode("utf-8", "replace")).hexdigest()[:16]
        for found, kind in zip(parsed, task_types, strict=True)
    ]
    asked = {
        key: ChatRequest(key, FOUR_AXES.messages(found.answer, kind), schema=FOUR_AXES.schema)
        for key, found, kind in zip(keys, parsed, task_types, strict=True)
        if key is not None and found is not None
    }
    settings = {**chat_model.settings, **FOUR_AXES.settings}
    with Journal(Path(folder) / JOURNAL_FILE, settings) as journal:
        answers = ask_all(chat_model, asked.values(), FOUR_AXES.read, journal, note=REPEAT_NOTE)
        found_of = {key: answers[key][0] for key in asked}
    scores: list[float | None] = []
    for key in keys:
        axes = None if key is None else found_of[key]
        scores.append(None if axes is None else float(Rating(**axes).score))
    return scores


def summarize(columns: Columns, task_types: Sequence[str], *, answered: Sequence[bool]) -> dict[str, Any]:
    """Means over all completions and per task type.

    Args:
        columns: What `score_completions` returned, and other scores.
        task_types: Task types of the completions (n).
        answered: Whether there was any text (n).

    Returns:
        `rows`, `answered`, `means`, `judged`, and the same for each of `task_types`.
    """
    kinds = [kind.value for kind in TaskType if kind.value in set(task_types)]
    parts = {kind: [row for row, own in enumerate(task_types) if own == kind] for kind in kinds}
    return {
        **_means(columns, answered, range(len(task_types))),
        "task_types": {kind: _means(columns, answered, rows) for kind, rows in parts.items()},
    }


def _means(columns: Columns, answered: Sequence[bool], rows: Sequence[int]) -> dict[str, Any]:
    known = {name: [value for row in rows if (value := values[row]) is not None] for name, values in columns.items()}
    return {
        "rows": len(rows),
        "answered": sum(answered[row] for row in rows),
        "means": {name: sum(values) / len(values) if values else None for name, values in known.items()},
        "judged": {name: len(values) for name, values in known.items()},
    }


def _against_references(
    answers: Sequence[str | None],
    references: Sequence[str | None],
    compare: Callable[[list[str], list[str]], list[float]],
) -> list[float | None]:
    """A comparison where there are both an answer and a reference; 0 without an answer, `None` without a reference."""
    values: list[float | None] = [None if reference is None else 0.0 for reference in references]
    pairs = [
        (row, answer, reference)
        for row, (answer, reference) in enumerate(zip(answers, references, strict=True))
        if answer is not None and reference is not None
    ]
    found = compare([answer for _, answer, _ in pairs], [reference for _, _, reference in pairs]) if pairs else []
    for (row, _, _), value in zip(pairs, found, strict=True):
        values[row] = value
    return values


def markdown(results: Mapping[str, Any]) -> str:
    """The tables of an evaluation: all task types together, then each one.

    Args:
        results: `rows`, `data` and `systems`, as `evaluation.json` holds them.

    Returns:
        Markdown. A dash: nothing could be judged. A number in brackets: how many were judged, where not all were.
    """
    systems = results["systems"]
    names = given_scores(systems)
    parts = [("All task types", [(system["system"], system) for system in systems])]
    kinds = dict.fromkeys(kind for system in systems for kind in system["task_types"])
    for kind in kinds:
        parts.append(
            (kind, [(one["system"], one["task_types"][kind]) for one in systems if kind in one["task_types"]])
        )
    blocks = [f"# {results['data']}, {results['rows']} prompts"]
    for system in systems:
        if system["rows"] < results["rows"]:
            blocks.append(
                f"{_cell(system['system'])} writes {', '.join(system['task_types'])} only: compare it there."
            )
    for title, entries in parts:
        head = ["system", "answered", *map(score_title, names)]
        lines = [
            [_cell(name), f"{entry['answered']}/{entry['rows']}", *_values(entry, names)] for name, entry in entries
        ]
        table = [f"| {' | '.join(line)} |" for line in [head, ["---", *["---:"] * (len(head) - 1)], *lines]]
        blocks.append("\n".join([f"## {title}", "", *table]))
    return "\n\n".join(blocks) + "\n"


def _values(entry: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        value, judged = entry["means"].get(name), entry["judged"].get(name, 0)
        shown = score_text(name, value)
        cells.append(shown if value is None or judged == entry["rows"] else f"{shown} ({judged})")
    return cells


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
