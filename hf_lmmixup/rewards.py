r"""Rewards for `trl grpo`, by dotted path: `--reward_funcs hf_lmmixup.rewards.quality_reward ...`.

Each is a plain function `(completions, **columns) -> list[float | None]`: a value in [0, 1], or `None` where it cannot
judge, so that TRL leaves the row out of that reward. A malformed completion and an answer that a guard stops (see
`guards`) earn 0 from the rewards that judge meaning. `reward_settings` lists the environment variables that configure
them. Of an input or a reference, guards and facts read the first 16,384 characters, and the encoder as many tokens as
it takes: a text of a megabyte costs no more than a long page.

One completion of a GRPO batch, with the columns of MIXTURE's `grpo` form::

    completions=["<think>Both ask about tides.</think>\n<answer>Q: What causes tides?\nA: The Moon's pull.</answer>"]
    task_type=["qa"]   reference=["Q: What causes tides?\nA: ..."]   sources=[["Q: tides?\nA: moon", ...]]
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_lmmixup.coverage import Coverage, measure_coverage
from hf_lmmixup.datastore import ScoredDatastore
from hf_lmmixup.encoder import CachedEncoder
from hf_lmmixup.observations import Observation, record
from hf_lmmixup.prompts import answer_matches
from hf_lmmixup.readings import (
    Reading,
    cluster_column,
    column,
    completion_text,
    read_completions,
    reference_column,
    source_texts,
)
from hf_lmmixup.records import HIGH_SCORE, TaskType
from hf_lmmixup.reward_settings import (
    check_settings,
    loaded_datastore,
    loaded_encoder,
    mixup_weights,
    quality_judge,
    quality_mode,
)


ALIGNMENT_THRESHOLD = 0.8
"""Cosine of answer and reference from which an answer counts as aligned (arXiv 2510.20449, code)."""

FAIR_SCORE, FAIR_REWARD = 3, 0.3
"""What the class just below the high ones earns (arXiv 2510.20449, code); lower classes earn nothing."""

COPY_COSINE = 0.98
"""From this cosine on an answer is one with a row of the datastore."""

Rewards = list[float | None]

# `trl grpo` imports the rewards before it loads a model: the time to name a mistake.
check_settings()


def __getattr__(name: str) -> Any:
    offered = sorted(known for known in globals() if known.endswith("_reward"))
    raise AttributeError(f"module {__name__!r} has no reward {name!r}. It offers {offered}.")


def format_reward(
    completions: Sequence[Any], task_type: Sequence[str | None] | None = None, **columns: Any
) -> Rewards:
    """0.5 for exactly one `<think>` and one `<answer>` with nothing around them, 1.0 if the form fits the task.

    Args:
        completions: Texts or message lists.
        task_type: Task type of each; missing means `qa`.
        **columns: TRL's other columns and loggers.

    Returns:
        0.0, 0.5 or 1.0 for each.

    Raises:
        ValueError: If a task type is unknown: a mistake in the dataset, not of the completion.
    """
    started = time.perf_counter()
    readings = _read(completions, columns)
    values: Rewards = [
        0.0 if reading.answer is None else 1.0 if answer_matches(reading.answer, kind) else 0.5
        for reading, kind in zip(readings, _kinds(task_type, len(readings)), strict=True)
    ]
    return _finish("format", values, readings, completions, columns, started)


def alignment_reward(completions: Sequence[Any], **columns: Any) -> Rewards:
    """1 if the answer's cosine to its reference is at least 0.8, else 0.

    Args:
        completions: Texts or message lists.
        **columns: `reference` (the excellent text of each; a row without one gets `None`), TRL's other columns and
            loggers.

    Returns:
        0.0, 1.0 or `None` for each.
    """
    started = time.perf_counter()
    readings = _read(completions, columns)
    references = reference_column(columns.get("reference"), len(readings))
    values: Rewards = [None if text is None else 0.0 for text in references]
    judged = [row for row, value in enumerate(values) if value is not None and readings[row].fault is None]
    cosines: Rewards = [None] * len(values)
    if judged:
        found = _cosines(loaded_encoder(), [(readings[row].answer, references[row]) for row in judged])
        for row, cosine in zip(judged, found, strict=True):
            cosines[row], values[row] = float(cosine), float(cosine >= ALIGNMENT_THRESHOLD)
    return _finish("alignment", values, readings, completions, columns, started, cosine=cosines)


def quality_reward(
    completions: Sequence[Any], task_type: Sequence[str | None] | None = None, **columns: Any
) -> Rewards:
    """How good the datastore expects the answer to be: 1 for classes 4 and 5, 0.3 for class 3, 0 below.

    The class is the nearest one to the expected score; in the mode `upstream` it is found as in the published code,
    from the neighbors, where class 3 is met by exact equality only. The reward abstains without a datastore, without
    rows of the task type, and where the reference (without one: the answer) is too far from all rows. The reference
    decides, so that an answer cannot escape judgement by leaving the subject.

    Args:
        completions: Texts or message lists.
        task_type: Task type of each; missing means `qa`.
        **columns: `reference`, TRL's other columns and loggers.

    Returns:
        A value in {0, 0.3, 1} or `None` for each.
    """
    started = time.perf_counter()
    readings, kinds = _read(completions, columns), _kinds(task_type, len(completions))
    references = reference_column(columns.get("reference"), len(readings))
    values: Rewards = [None] * len(readings)
    expected: Rewards = [None] * len(readings)
    datastore = loaded_datastore()
    if datastore is not None:
        known = [row for row, kind in enumerate(kinds) if kind.value in datastore.transitions]
        answers = [readings[row].answer for row in known if readings[row].fault is None]
        # All at once, so that batches are full; what follows finds the vectors remembered.
        loaded_encoder().encode([text for text in (*answers, *(references[row] for row in known)) if text is not None])
        for kind in dict.fromkeys(kinds[row] for row in known):
            rows = [row for row in known if kinds[row] == kind]
            _judge_kind(datastore, kind, rows, readings, references, values, expected)
    return _finish("quality", values, readings, completions, columns, started, expected_score=expected)


def coverage_reward(completions: Sequence[Any], **columns: Any) -> Rewards:
    """How much of the input cluster the answer preserves without inventing: `coverage.Coverage.value`.

    Args:
        completions: Texts or message lists.
        **columns: `sources` (the weak texts that each completion merges; without the column they are read from
            `prompts`, and a row with neither gets `None`), TRL's other columns and loggers.

    Returns:
        A value in [0, 1] or `None` for each.
    """
    started = time.perf_counter()
    readings = _read(completions, columns)
    measured: list[Coverage | None] = [
        measure_coverage(reading.answer if reading.answer is not None and reading.fault is None else "", cluster)
        for reading, cluster in zip(readings, _clusters(columns, len(readings)), strict=True)
    ]
    values: Rewards = [None if found is None else found.value for found in measured]
    parts = {name: [getattr(found, name, None) for found in measured] for name in ("kept", "supported", "sources")}
    extra = {f"coverage_{name}": shares for name, shares in parts.items()}
    return _finish("coverage", values, readings, completions, columns, started, **extra)


def mixup_reward(completions: Sequence[Any], **columns: Any) -> Rewards:
    """The published sum for each task type: 0.5 quality + 0.4 alignment + 0.1 format, over the parts that can judge.

    Args:
        completions: Texts or message lists.
        **columns: `task_type`, `reference`, and TRL's loggers.

    Returns:
        A value in [0, 1] for each: the weights of abstaining parts are shared out among the others. `None` if all
        parts with a weight abstain.
    """
    started = time.perf_counter()
    parts = {
        "quality": quality_reward(completions, **columns),
        "alignment": alignment_reward(completions, **columns),
        "format": format_reward(completions, **columns),
    }
    values: Rewards = []
    for row, kind in enumerate(_kinds(columns.get("task_type"), len(completions))):
        weights = mixup_weights(kind)
        judged = {name: value for name, found in parts.items() if (value := found[row]) is not None}
        total = sum(weights[name] for name in judged)
        values.append(sum(weights[name] * judged[name] for name in judged) / total if total else None)
    return _finish("mixup", values, _read(completions, columns), completions, columns, started)


def _judge_kind(
    datastore: ScoredDatastore,
    kind: TaskType,
    rows: list[int],
    readings: Sequence[Reading],
    references: Sequence[str | None],
    values: Rewards,
    expected: Rewards,
) -> None:
    """Fill in the values and expected scores of the rows of one task type."""
    encoder, reference_of = loaded_encoder(), {row: text for row in rows if (text := references[row]) is not None}
    known = dict(zip(reference_of, _nearest(datastore, encoder, list(reference_of.values()), kind), strict=True))
    answer_of = {row: readings[row].answer or "" for row in rows if readings[row].fault is None}
    judged = [row for row in answer_of if known.get(row, 1.0) >= datastore.floor]
    for row in rows:
        values[row] = 0.0 if known.get(row, 1.0) >= datastore.floor else None
    answers = list(dict.fromkeys(answer_of[row] for row in judged))
    embeddings = encoder.encode(answers)
    scores = dict(
        zip(answers, datastore.judge_embedded(answers, embeddings, kind, judge=quality_judge()), strict=True)
    )
    nearness = dict(zip(answers, datastore.nearest(embeddings, kind) if answers else (), strict=True))
    copies = [row for row in judged if nearness[answer_of[row]] >= COPY_COSINE and row in reference_of]
    cosines = _cosines(encoder, [(answer_of[row], reference_of[row]) for row in copies])
    stolen = {row for row, cosine in zip(copies, cosines, strict=True) if cosine < ALIGNMENT_THRESHOLD}
    for row in judged:
        score = float(scores[answer_of[row]])
        if row not in reference_of and nearness[answer_of[row]] < datastore.floor:
            values[row] = None
        else:
            expected[row], values[row] = score, 0.0 if row in stolen else _level(score)


def _nearest(datastore: ScoredDatastore, encoder: CachedEncoder, texts: list[str], kind: TaskType) -> np.ndarray:
    distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    if not distinct:
        return np.zeros(0, np.float32)
    return datastore.nearest(encoder.encode(list(distinct)), kind)[[distinct[text] for text in texts]]


def _cosines(encoder: CachedEncoder, pairs: Sequence[tuple[str | None, str | None]]) -> np.ndarray:
    if not pairs:
        return np.zeros(0, np.float32)
    rows = encoder.encode([text or "" for pair in pairs for text in pair])
    return np.einsum("nd,nd->n", rows[0::2], rows[1::2])


def _level(expected: float) -> float:
    if quality_mode() == "upstream":
        return 1.0 if expected >= HIGH_SCORE else FAIR_REWARD if expected == FAIR_SCORE else 0.0
    nearest = int(np.floor(expected + 0.5))
    return 1.0 if nearest >= HIGH_SCORE else FAIR_REWARD if nearest == FAIR_SCORE else 0.0


def _kinds(task_type: Sequence[str | None] | None, rows: int) -> list[TaskType]:
    return [TaskType(kind or TaskType.QA) for kind in column(task_type, rows, "task_type")]


def _clusters(columns: dict[str, Any], rows: int) -> list[Sequence[str]]:
    sources, prompts = cluster_column(columns.get("sources"), rows), column(columns.get("prompts"), rows, "prompts")
    return [cluster or source_texts(prompt) for cluster, prompt in zip(sources, prompts, strict=True)]


def _read(completions: Sequence[Any], columns: dict[str, Any]) -> list[Reading]:
    return read_completions(completions, _clusters(columns, len(completions)), columns.get("reference"))


def _finish(
    name: str,
    values: Rewards,
    readings: Sequence[Reading],
    completions: Sequence[Any],
    columns: dict[str, Any],
    started: float,
    **extra: Sequence[float | None],
) -> Rewards:
    """Tell TRL and the monitors what was found, and pass the values on."""
    clusters = _clusters(columns, len(values))
    faults = [reading.fault for reading in readings]
    texts = [completion_text(completion) for completion in completions]
    record(Observation(name, texts, clusters, values, faults))
    if (log_extra := columns.get("log_extra")) is not None:
        for title, entries in {**extra, f"{name}_fault": faults}.items():
            log_extra(title, entries)
    if (log_metric := columns.get("log_metric")) is not None and values:
        log_metric(f"{name}_reward/abstained", sum(value is None for value in values) / len(values))
        log_metric(f"{name}_reward/guarded", sum(fault is not None for fault in faults) / len(values))
        for title, entries in extra.items():
            known = [entry for entry in entries if entry is not None]
            if known:
                log_metric(f"{name}_reward/{title}", sum(known) / len(known))
        log_metric(f"{name}_reward/seconds", time.perf_counter() - started)
    return values
