"""The monitors for plain `trl grpo`, which takes no callbacks: a reward of weight 0 that stands behind the others.

    reward_funcs: [hf_lmmixup.rewards.quality_reward, hf_lmmixup.watching.copy_rate_monitor]
    reward_weights: [1.0, 0.0]

It reads what the rewards before it recorded, hands the numbers of `monitors.step_numbers` to TRL's own logging (so
`monitor/length` or `monitor/distinct_2` stand beside `reward` in trackio, wandb, tensorboard and
`trainer_state.json`), and warns, once for each trouble. In a script, `monitors.monitor_callback` does the same.
"""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

from hf_lmmixup.monitors import RewardMonitor, copy_rate
from hf_lmmixup.observations import drain
from hf_lmmixup.prompts import parse_completion
from hf_lmmixup.readings import cluster_column, column, completion_text, source_texts


logger = logging.getLogger(__name__)


@cache
def process_monitor() -> RewardMonitor:
    """The monitor of this process; each process of a distributed training watches its own share."""
    return RewardMonitor()


def copy_rate_monitor(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """Log the numbers of the step and warn of troubles; to be used with weight 0, as the last reward.

    Args:
        completions: Texts or message lists.
        **columns: `sources` (without it they are read from `prompts`), `trainer_state`, TRL's loggers and others.

    Returns:
        For each completion the share of its word sequences that stand in its inputs; `None` if it has too few words
        or no inputs are known.
    """
    monitor = process_monitor()
    numbers = monitor.observe(drain())
    if (log_metric := columns.get("log_metric")) is not None:
        for name, value in numbers.items():
            log_metric(f"monitor/{name}", value)
    state = columns.get("trainer_state")
    troubles = monitor.troubles()
    if state is None or state.is_world_process_zero:
        for text in troubles:
            logger.warning("step %s: %s", "?" if state is None else state.global_step, text)
    rows = len(completions)
    sources, prompts = cluster_column(columns.get("sources"), rows), column(columns.get("prompts"), rows, "prompts")
    return [
        _copied(completion_text(completion), cluster or source_texts(prompt))
        for completion, cluster, prompt in zip(completions, sources, prompts, strict=True)
    ]


def _copied(text: str, cluster: Sequence[str]) -> float | None:
    parsed = parse_completion(text)
    return copy_rate(parsed.answer if parsed is not None else text, cluster) if cluster else None
