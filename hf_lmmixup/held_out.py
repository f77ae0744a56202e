"""How well a distiller does on prompts it was not trained on: its completions, and what each reward gives them.

One result::

    {"prompts": 45, "format": 0.93, "alignment": 0.0, "quality": 0.21, "coverage": 0.12, "total": 0.19}

`total` is the published sum of the rewards (`rewards.mixup_reward`); a reward that abstains everywhere is `None`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_lmmixup import rewards
from hf_lmmixup.distillation import Generate
from hf_lmmixup.process_environment import variables


REWARDS = {
    "format": rewards.format_reward,
    "alignment": rewards.alignment_reward,
    "quality": rewards.quality_reward,
    "coverage": rewards.coverage_reward,
    "total": rewards.mixup_reward,
}


def judge(generate: Generate, rows: Sequence[Mapping[str, Any]], environment: Mapping[str, str]) -> dict[str, Any]:
    """Let a distiller answer held-out prompts greedily and average its rewards.

    Args:
        generate: What writes completions.
        rows: Rows of MIXTURE's `grpo` form: `prompt`, `task_type`, `reference`, `sources`.
        environment: The `HF_LMMIXUP_*` variables that the rewards shall see.

    Returns:
        The number of prompts, the mean of each reward, and the first completion of each task type as `examples`.
    """
    replies = [reply or "" for reply in generate([row["prompt"] for row in rows])]
    columns = {name: [row[name] for row in rows] for name in ("task_type", "reference", "sources")}
    result: dict[str, Any] = {"prompts": len(rows)}
    with variables(environment):
        for name, reward in REWARDS.items():
            judged = [value for value in reward(completions=replies, **columns) if value is not None]
            result[name] = sum(judged) / len(judged) if judged else None
    examples: dict[str, str] = {}
    for kind, reply in zip(columns["task_type"], replies, strict=True):
        examples.setdefault(kind, reply)
    return result | {"examples": examples}
