r"""Rewards for `trl grpo`, by dotted path: `--reward_funcs hf_lmmixup.rewards.quality_reward ...`.

Each is a plain function `(completions, **columns) -> list[float | None]`: values in [0, 1], `None` where it cannot
judge, so that TRL leaves the row out of that reward. All of them read a completion through one strict parser, and a
broken completion earns 0. Configuration comes from the environment, which a TRL recipe sets in its `env:` block:

    HF_LMMIXUP_DATASTORE            folder, Hub id, or `bundled`; unset: the quality reward abstains
    HF_LMMIXUP_ENCODER              folder or Hub id; unset: the offline MiniLM
    HF_LMMIXUP_ENCODER_PRECISION    auto (default), float32 or bfloat16
    HF_LMMIXUP_QUALITY_MODE         nearest (default) or upstream

One completion of a GRPO batch::

    "<think>Both ask about tides.</think>\n<answer>Q: What causes tides?\nA: The Moon's pull.</answer>"
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from hf_lmmixup.bundled import rated_texts
from hf_lmmixup.coverage import coverage
from hf_lmmixup.datastore import ScoredDatastore, build
from hf_lmmixup.encoder import CachedEncoder, load_encoder
from hf_lmmixup.prompts import answer_matches, parse_completion
from hf_lmmixup.records import TaskType


logger = logging.getLogger(__name__)

ALIGNMENT_THRESHOLD = 0.8
"""Cosine of answer and reference from which an answer counts as aligned (arXiv 2510.20449, code)."""

QUALITY_LEVELS = {3: 0.3, 4: 1.0, 5: 1.0}
"""Reward by score class; lower classes earn nothing (arXiv 2510.20449, code)."""

MIXUP_WEIGHTS = {"quality": 0.5, "alignment": 0.4, "format": 0.1}
"""Published weights, the same for every task type (arXiv 2510.20449, configuration)."""

QUALITY_MODES = ("nearest", "upstream")

Rewards = list[float | None]


def format_reward(completions: Sequence[Any], task_type: Sequence[str | None] | None = None, **kwargs: Any) -> Rewards:
    """0.5 for exactly one `<think>` and one `<answer>` with nothing around them, 1.0 if the form fits the task.

    Args:
        completions: Texts or message lists.
        task_type: Task type of each; missing means `qa`.
        **kwargs: TRL's other columns and loggers.

    Returns:
        0.0, 0.5 or 1.0 for each.
    """
    started = time.perf_counter()
    kinds = _task_types(task_type, len(completions))
    rewards: Rewards = []
    for answer, kind in zip(_answers(completions), kinds, strict=True):
        rewards.append(0.0 if answer is None else 1.0 if answer_matches(answer, kind) else 0.5)
    return _logged("format", rewards, started, kwargs)


def alignment_reward(
    completions: Sequence[Any], reference: Sequence[str | None] | None = None, **kwargs: Any
) -> Rewards:
    """1 if the answer's cosine to the reference is at least 0.8, else 0.

    Args:
        completions: Texts or message lists.
        reference: The excellent text of each; a row without one gets `None`.
        **kwargs: TRL's other columns and loggers.

    Returns:
        0.0, 1.0 or `None` for each.
    """
    started = time.perf_counter()
    answers = _answers(completions)
    wanted = list(reference) if reference is not None else [None] * len(answers)
    rewards: Rewards = [None if text is None else 0.0 for text in wanted]
    judged = [row for row, text in enumerate(wanted) if text is not None and answers[row] is not None]
    if judged:
        encoder = _encoder()
        own = encoder.encode([answers[row] or "" for row in judged])
        gold = encoder.encode([wanted[row] or "" for row in judged])
        for row, cosine in zip(judged, np.einsum("nd,nd->n", own, gold), strict=True):
            rewards[row] = float(cosine >= ALIGNMENT_THRESHOLD)
    return _logged("alignment", rewards, started, kwargs)


def quality_reward(
    completions: Sequence[Any], task_type: Sequence[str | None] | None = None, **kwargs: Any
) -> Rewards:
    """How good the datastore expects the answer to be: 1 for class 4 and 5, 0.3 for class 3, 0 below.

    Args:
        completions: Texts or message lists.
        task_type: Task type of each; missing means `qa`.
        **kwargs: TRL's other columns and loggers.

    Returns:
        A reward for each; `None` without a datastore or without rows of the task type.
    """
    started = time.perf_counter()
    answers, kinds = _answers(completions), _task_types(task_type, len(completions))
    datastore = _datastore()
    if datastore is None:
        return _logged("quality", [None] * len(answers), started, kwargs)
    rewards: Rewards = [0.0 if kind.value in datastore.transitions else None for kind in kinds]
    expected: Rewards = [None] * len(answers)
    for kind in dict.fromkeys(kinds):
        judged = [row for row, own in enumerate(kinds) if own == kind and answers[row] is not None]
        if judged and kind.value in datastore.transitions:
            embeddings = _encoder().encode([answers[row] or "" for row in judged])
            texts = [answers[row] or "" for row in judged]
            for row, score in zip(judged, datastore.judge_embedded(texts, embeddings, kind), strict=True):
                expected[row], rewards[row] = float(score), _level(float(score))
    if kwargs.get("log_extra") is not None:
        kwargs["log_extra"]("expected_score", expected)
    return _logged("quality", rewards, started, kwargs)


def coverage_reward(
    completions: Sequence[Any], sources: Sequence[Sequence[str] | None] | None = None, **kwargs: Any
) -> Rewards:
    """How much of the input cluster the answer preserves without inventing.

    Args:
        completions: Texts or message lists.
        sources: The weak texts that each completion merges; a row without them gets `None`.
        **kwargs: TRL's other columns and loggers.

    Returns:
        A value in [0, 1] or `None` for each.
    """
    started = time.perf_counter()
    rewards: Rewards = []
    for answer, cluster in zip(_answers(completions), sources or [None] * len(completions), strict=True):
        measured = coverage(answer or "", cluster) if cluster else None
        rewards.append(None if measured is None else measured.value)
    return _logged("coverage", rewards, started, kwargs)


def mixup_reward(completions: Sequence[Any], **kwargs: Any) -> Rewards:
    """The published sum: 0.5 quality + 0.4 alignment + 0.1 format, over the parts that can judge.

    Args:
        completions: Texts or message lists.
        **kwargs: The columns `task_type` and `reference`, and TRL's loggers.

    Returns:
        A value in [0, 1] for each: the weights of abstaining parts are shared out among the others.
    """
    started = time.perf_counter()
    parts = {
        "quality": quality_reward(completions, **kwargs),
        "alignment": alignment_reward(completions, **kwargs),
        "format": format_reward(completions, **kwargs),
    }
    rewards: Rewards = []
    for row in range(len(completions)):
        judged = {name: value for name in parts if (value := parts[name][row]) is not None}
        total = sum(MIXUP_WEIGHTS[name] for name in judged)
        rewards.append(sum(MIXUP_WEIGHTS[name] * value for name, value in judged.items()) / total)
    return _logged("mixup", rewards, started, kwargs)


def completion_text(completion: Any) -> str:
    """The text of a completion: a string, or the content of the last message of a conversation."""
    if isinstance(completion, str):
        return completion
    message = completion[-1] if isinstance(completion, (list, tuple)) and completion else completion
    content = message.get("content") if isinstance(message, dict) else message
    if isinstance(content, (list, tuple)):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _answers(completions: Sequence[Any]) -> list[str | None]:
    parsed = [parse_completion(completion_text(completion)) for completion in completions]
    return [None if distillation is None else distillation.answer for distillation in parsed]


def _task_types(task_type: Sequence[str | None] | None, rows: int) -> list[TaskType]:
    return [TaskType(kind or TaskType.QA) for kind in (task_type or [None] * rows)]


def _level(expected: float) -> float:
    if _setting("QUALITY_MODE", "nearest", QUALITY_MODES) == "upstream":
        return 1.0 if expected >= 4 else 0.3 if expected == 3 else 0.0
    return QUALITY_LEVELS.get(int(np.floor(expected + 0.5)), 0.0)


def _setting(name: str, default: str, allowed: Sequence[str]) -> str:
    value = os.environ.get(f"HF_LMMIXUP_{name}", default)
    if value not in allowed:
        raise ValueError(f"HF_LMMIXUP_{name}={value!r} is unknown. Expected one of {list(allowed)}.")
    return value


def _encoder() -> CachedEncoder:
    return _load_encoder(
        os.environ.get("HF_LMMIXUP_ENCODER") or None, os.environ.get("HF_LMMIXUP_ENCODER_PRECISION") or "auto"
    )


@cache
def _load_encoder(name: str | None, precision: str) -> CachedEncoder:
    return CachedEncoder(load_encoder(name, precision=precision))


def _datastore() -> ScoredDatastore | None:
    where = os.environ.get("HF_LMMIXUP_DATASTORE")
    if not where:
        _warn_once(
            "HF_LMMIXUP_DATASTORE is not set, so the quality reward abstains. Name a folder, a Hub id or bundled."
        )
        return None
    return _load_datastore(where, _encoder())


@cache
def _load_datastore(where: str, encoder: CachedEncoder) -> ScoredDatastore:
    if where == "bundled":
        rows = rated_texts("train")
        return build([row.text for row in rows], [row.score for row in rows], [row.task_type for row in rows], encoder)
    datastore = ScoredDatastore.from_pretrained(where)
    if datastore.encoder != encoder.name:
        raise ValueError(
            f"The datastore {where} was made with the encoder {datastore.encoder!r}, not with {encoder.name!r}. "
            "Set HF_LMMIXUP_ENCODER to the former."
        )
    return datastore


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _logged(name: str, rewards: Rewards, started: float, kwargs: dict[str, Any]) -> Rewards:
    log: Callable[[str, float], None] | None = kwargs.get("log_metric")
    if log is not None:
        log(f"{name}_reward/seconds", time.perf_counter() - started)
        log(f"{name}_reward/abstained", sum(value is None for value in rewards) / max(1, len(rewards)))
    return rewards
