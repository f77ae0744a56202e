"""Watches GRPO: length, copying, variety, the rewards, how they hang together, and what to do when one goes wrong.

Rewards are proxies, and a policy finds their gaps. `RewardMonitor` turns what the rewards saw in a step into a few
numbers and says, once for each trouble, what is happening and what helps::

    step 40: {"length": 61.2, "copy_rate": 0.31, "distinct_2": 0.74, "quality": 0.55, "quality_abstained": 0.0, ...}
    "The reward 'format' has been 1.00 for 5 steps: it no longer tells completions apart. Lower its weight ..."

In a script: `GRPOTrainer(..., callbacks=[monitor_callback()])`.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_lmmixup.observations import Observation, drain
from hf_lmmixup.prompts import parse_completion


logger = logging.getLogger(__name__)

PATIENCE = 5
"""Steps in a row that a reward must be stuck before it is reported."""
BASELINE_STEPS = 10
"""First steps, whose mean later steps are compared with."""
COPY_SHINGLE = 4
"""Words of a sequence that counts as copied."""


@dataclass(frozen=True)
class Limits:
    """Where trouble begins.

    Attributes:
        saturated: Mean reward at or above which completions no longer differ.
        starved: Mean reward at or below which nothing is learned from it.
        growth: Factor by which the length may leave its baseline, up or down.
        copying: How far the copy rate may rise above its baseline.
        variety: Share of the baseline's distinct word pairs that must remain.
        abstained: Share of completions that a reward may leave unjudged.
        opposed: Correlation of two rewards below which they pull in opposite directions.
    """

    saturated: float = 0.98
    starved: float = 0.02
    growth: float = 1.5
    copying: float = 0.2
    variety: float = 0.6
    abstained: float = 0.5
    opposed: float = -0.3


@dataclass
class RewardMonitor:
    """Numbers of each step and the warnings they lead to.

    Attributes:
        limits: Where trouble begins.
        history: The numbers of each step so far.
        warned: Troubles that were reported.
    """

    limits: Limits = field(default_factory=Limits)
    history: list[dict[str, float]] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)

    def observe(self, observations: Sequence[Observation]) -> dict[str, float]:
        """Take in the calls of one step and return its numbers; an empty step has none."""
        numbers = step_numbers(observations)
        if numbers:
            self.history.append(numbers)
        return numbers

    def troubles(self) -> list[str]:
        """What is wrong now and has not been said before: one sentence each, with a remedy."""
        if not self.history:
            return []
        found = [*self._stuck(), *self._drifting(), *self._disagreeing()]
        new = [(name, text) for name, text in found if name not in self.warned]
        self.warned.update(name for name, _ in new)
        return [text for _, text in new]

    def _stuck(self) -> Iterable[tuple[str, str]]:
        recent = self.history[-PATIENCE:]
        for name in _rewards(self.history[-1]):
            values = [numbers[name] for numbers in recent if name in numbers]
            if len(values) == PATIENCE and min(values) >= self.limits.saturated:
                yield (
                    f"{name} saturated",
                    f"The reward '{name}' has been {min(values):.2f} or more for {PATIENCE} steps: it no longer tells "
                    "completions apart. Lower its weight, or stop training if it was the aim.",
                )
            if len(values) == PATIENCE and max(values) <= self.limits.starved:
                yield (
                    f"{name} starved",
                    f"The reward '{name}' has been {max(values):.2f} or less for {PATIENCE} steps: nothing is learned "
                    "from it. Train the cold start longer, sample more completions a prompt, or raise temperature.",
                )
            abstained = self.history[-1].get(f"{name}_abstained", 0.0)
            if abstained > self.limits.abstained:
                yield (
                    f"{name} abstains",
                    f"The reward '{name}' abstains on {abstained:.0%} of the completions. Check that the columns it "
                    "needs exist and that HF_LMMIXUP_DATASTORE names a datastore with rows of these task types.",
                )

    def _drifting(self) -> Iterable[tuple[str, str]]:
        if len(self.history) <= BASELINE_STEPS:
            return
        now = {name: _mean(self.history[-PATIENCE:], name) for name in ("length", "copy_rate", "distinct_2")}
        then = {name: _mean(self.history[:BASELINE_STEPS], name) for name in now}
        ratio = now["length"] / then["length"] if then["length"] else math.nan
        if ratio > self.limits.growth or ratio < 1 / self.limits.growth:
            yield (
                "length",
                f"Answers went from {then['length']:.0f} to {now['length']:.0f} words. Read some completions; if "
                "padding pays, add coverage_reward or lower max_completion_length.",
            )
        if now["copy_rate"] > then["copy_rate"] + self.limits.copying:
            yield (
                "copying",
                f"{now['copy_rate']:.0%} of the answers' word sequences stand in the inputs, at the start "
                f"{then['copy_rate']:.0%}: the policy copies instead of merging. Raise the weight of quality_reward "
                "or add KL (beta).",
            )
        if now["distinct_2"] < then["distinct_2"] * self.limits.variety:
            yield (
                "variety",
                f"Distinct word pairs fell from {then['distinct_2']:.2f} to {now['distinct_2']:.2f}: completions "
                "collapse to one form. Raise the temperature, add KL (beta) or go back to an earlier checkpoint.",
            )

    def _disagreeing(self) -> Iterable[tuple[str, str]]:
        if len(self.history) < PATIENCE:
            return
        for name in self.history[-1]:
            first, mark, second = name.partition("~")
            value = _mean(self.history[-PATIENCE:], name)
            if mark and value < self.limits.opposed:
                yield (
                    name,
                    f"The rewards '{first}' and '{second}' pull in opposite directions (correlation {value:.2f}). "
                    "One of them may be gamed: compare completions that each of them likes best.",
                )


def step_numbers(observations: Sequence[Observation]) -> dict[str, float]:
    """The numbers of one step.

    Args:
        observations: What the rewards recorded.

    Returns:
        `length` (words of an answer), `copy_rate` (share of its word sequences that stand in its inputs), `distinct_2`
        (distinct word pairs of all answers), and for each reward its mean, `<name>_abstained`, `<name>_guarded`, and
        its correlation with others as `<name>~<other>`. A number that cannot be told is left out.
    """
    if not observations:
        return {}
    numbers: dict[str, float] = {}
    values: dict[str, list[float | None]] = {}
    for call in observations:
        values.setdefault(call.reward, []).extend(call.values)
    for name, found in values.items():
        judged = [value for value in found if value is not None]
        if judged:
            numbers[name] = float(np.mean(judged))
        if found:
            numbers[f"{name}_abstained"] = 1 - len(judged) / len(found)
            faults = [fault for call in observations if call.reward == name for fault in call.faults]
            numbers[f"{name}_guarded"] = sum(fault is not None for fault in faults) / len(found)
    names = list(values)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            together = correlation(values[first], values[second])
            if together is not None:
                numbers[f"{first}~{second}"] = together
    return numbers | _text_numbers([call for call in observations if call.reward == names[0]])


def correlation(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Pearson's correlation over rows that both judged; `None` if there are too few or one of them is constant."""
    if len(first) != len(second):
        return None
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len(pairs) < 3:
        return None
    x, y = np.array(pairs).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def copy_rate(answer: str, sources: Sequence[str]) -> float | None:
    """Share of an answer's sequences of four words that stand in one of its sources; `None` if it has none."""
    own = _sequences(answer, COPY_SHINGLE)
    if not own:
        return None
    held = set().union(*(_sequences(text, COPY_SHINGLE) for text in sources))
    return sum(sequence in held for sequence in own) / len(own)


def monitor_callback(limits: Limits | None = None) -> Any:
    """A `transformers.TrainerCallback` for `GRPOTrainer(callbacks=[...])` around a `RewardMonitor`.

    Its numbers go to `state.log_history` (so into `trainer_state.json`), its warnings to the log.

    Args:
        limits: Where trouble begins.

    Returns:
        The callback; its attribute `monitor` is the monitor.
    """
    from transformers import TrainerCallback

    class RewardMonitorCallback(TrainerCallback):
        def __init__(self, monitor: RewardMonitor) -> None:
            self.monitor = monitor

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            drain()

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            drain()  # held-out prompts are not part of the next step

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            numbers = self.monitor.observe(drain())
            if numbers:
                titled = {f"monitor/{name}": value for name, value in numbers.items()}
                state.log_history.append({"step": state.global_step, **titled})
            for text in self.monitor.troubles():
                logger.warning("step %d: %s", state.global_step, text)

    return RewardMonitorCallback(RewardMonitor(limits or Limits()))


def _text_numbers(calls: Sequence[Observation]) -> dict[str, float]:
    answers, copied, lengths = [], [], []
    for call in calls:
        for text, cluster in zip(call.completions, call.sources, strict=True):
            parsed = parse_completion(text)
            answer = parsed.answer if parsed is not None else text
            answers.append(answer)
            lengths.append(len(answer.split()))
            rate = copy_rate(answer, cluster) if cluster else None
            if rate is not None:
                copied.append(rate)
    pairs = [pair for answer in answers for pair in _sequences(answer, 2)]
    numbers = {"length": float(np.mean(lengths))} if lengths else {}
    if copied:
        numbers["copy_rate"] = float(np.mean(copied))
    if pairs:
        numbers["distinct_2"] = len(set(pairs)) / len(pairs)
    return numbers


def _sequences(text: str, size: int) -> list[tuple[str, ...]]:
    words = text.casefold().split()
    return list(zip(*(words[start:] for start in range(size)), strict=False))


def _rewards(numbers: dict[str, float]) -> list[str]:
    return [name.removesuffix("_abstained") for name in numbers if name.endswith("_abstained")]


def _mean(steps: Sequence[dict[str, float]], name: str) -> float:
    values = [numbers[name] for numbers in steps if name in numbers]
    return sum(values) / len(values) if values else math.nan
