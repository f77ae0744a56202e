"""The latest step as the rewards saw it, kept for whoever watches the training.

Rewards write here, `monitors` reads; neither knows the other. One entry::

    Observation(reward="quality", completions=["<think>..."], sources=[["Q: ..."]], values=[1.0, None, ...], ...)
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


KEPT = 64
"""Calls that are remembered when nobody reads them."""


@dataclass(frozen=True)
class Observation:
    """One call of one reward.

    Attributes:
        reward: Name of the reward, without `_reward`.
        completions: The texts it was given.
        sources: The cluster of each, empty if unknown.
        values: What it returned.
        faults: Why each completion could not be judged, `None` where it could.
    """

    reward: str
    completions: Sequence[str]
    sources: Sequence[Sequence[str]]
    values: Sequence[float | None]
    faults: Sequence[str | None]


_latest: deque[Observation] = deque(maxlen=KEPT)


def record(observation: Observation) -> None:
    """Remember a call; the oldest one is forgotten when there are too many."""
    _latest.append(observation)


def drain() -> list[Observation]:
    """Hand out what was recorded since the last call, oldest first."""
    found = list(_latest)
    _latest.clear()
    return found
