"""What a MIXTURE of one's own is made by: the numbers of the plan, the drafts, and who writes.

A draft says which target shall be written from which segment. A writer turns drafts into targets, targets into weak
variants, and whole clusters into reasoning; `offline_writer` does so without a model, `chat_writer` with one::

    Draft(id="51b0c2...", segment=Segment(article="Tides", ...), task_type=TaskType.QA, siblings=(Segment(...), ...))
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hf_lmmixup.articles import Segment
from hf_lmmixup.records import HIGH_SCORE, TaskType, row_id, row_seed


SIBLINGS = 3
"""Other segments of the article that a draft knows: what the wrong options of a multiple-choice item are made of."""


@dataclass(frozen=True)
class Plan:
    """The numbers behind a construction; those of arXiv 2510.20449 where it gives them.

    Attributes:
        seed: Moves every draw.
        test_share: Share of the articles that is held out.
        sft_share: Share of the clusters for SFT; the others are for GRPO.
        sizes: Fewest and most weak variants of a cluster.
        size_decay: Chance that a cluster which has some size gets one variant more.
        min_score: Targets rated below are dropped.
        fusion_share: Share of the clusters that get a variant mixed with a close target of another article.
        fusion_similarity: Cosines between which two targets are close enough to be confused and far enough to differ.
        noise_share: Share of the weak variants that get typos.
        noise_rate: Share of the long words of such a variant that are misspelled.
        task_types: The types that are made.
    """

    seed: int = 0
    test_share: float = 0.2
    sft_share: float = 0.3
    sizes: tuple[int, int] = (2, 20)
    size_decay: float = 0.7
    min_score: int = HIGH_SCORE
    fusion_share: float = 0.25
    fusion_similarity: tuple[float, float] = (0.4, 0.9)
    noise_share: float = 0.3
    noise_rate: float = 0.08
    task_types: tuple[TaskType, ...] = tuple(TaskType)

    def __post_init__(self) -> None:
        for name in ("test_share", "sft_share", "fusion_share", "noise_share", "size_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 0 and below 1.")
        if not 2 <= self.sizes[0] <= self.sizes[1] <= 20:
            raise ValueError(f"sizes={self.sizes!r} must be two numbers from 2 to 20, the smaller one first.")
        if not self.task_types:
            raise ValueError(f"task_types is empty. Give at least one of {[kind.value for kind in TaskType]}.")

    def split_of(self, article: str) -> str:
        """`test` for a fixed share of all possible titles, so that more articles never move the others."""
        return "test" if draw(self.seed, f"split:{article}") < self.test_share else "train"

    def size_of(self, identifier: str) -> int:
        """How many weak variants a cluster gets: geometric between the bounds."""
        fewest, most = self.sizes
        if self.size_decay == 0:
            return fewest
        chance = max(draw(self.seed, f"size:{identifier}"), 1e-12)
        return min(most, fewest + int(math.log(chance) / math.log(self.size_decay)))


@dataclass(frozen=True)
class Draft:
    """A target to be written."""

    id: str
    segment: Segment
    task_type: TaskType
    siblings: tuple[Segment, ...]


@dataclass(frozen=True)
class Variant:
    """A weak text and what is wrong with it."""

    text: str
    flaw: str


@dataclass
class Target:
    """A written target; `text` and `score` are None if it could not be written or rated, and `reason` says why.

    The task type is mostly the draft's; a segment that does not yield that type may become another one.
    """

    draft: Draft
    task_type: TaskType
    text: str | None
    score: int | None
    reason: str | None = None


@dataclass
class Cluster:
    """A target with its weak variants, on its way to a row."""

    draft: Draft
    task_type: TaskType
    target: str
    score: int
    variants: list[Variant]
    reasoning: str = ""


class Writer(Protocol):
    """Who writes targets, variants and reasoning.

    Attributes:
        name: For the card.
    """

    name: str

    def targets(self, drafts: Sequence[Draft]) -> list[Target]:
        """One target a draft, in order."""
        ...

    def variants(self, targets: Sequence[Target], plan: Plan) -> list[list[Variant]]:
        """About `plan.size_of(id)` weak variants of each target, in order; fewer where none can be made."""
        ...

    def reasoning(self, clusters: Sequence[Cluster]) -> list[str | None]:
        """How the variants of each cluster were merged, in order; None where it could not be written."""
        ...


def make_drafts(segments: Sequence[Segment], plan: Plan) -> list[Draft]:
    """One draft a segment, its task type drawn by the segment's content.

    Args:
        segments: In any order; a segment keeps its draft when others come or go.
        plan: For seed and task types.

    Returns:
        The drafts in the order of the segments.
    """
    by_article: dict[str, list[Segment]] = {}
    for segment in segments:
        by_article.setdefault(segment.article, []).append(segment)
    drafts = []
    for segment in segments:
        identifier = row_id(f"{segment.article}\n{segment.title}", segment.text)
        kind = plan.task_types[row_seed(plan.seed, f"kind:{identifier}") % len(plan.task_types)]
        drafts.append(Draft(identifier, segment, kind, _siblings(segment, by_article[segment.article], identifier)))
    return drafts


def _siblings(segment: Segment, article: Iterable[Segment], identifier: str) -> tuple[Segment, ...]:
    others = {other.title: other for other in article if other.title != segment.title}
    ranked = sorted(others, key=lambda title: row_id(identifier, title))
    return tuple(others[title] for title in ranked[:SIBLINGS])


def draw(seed: int, name: str) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6], "big") / 2**48
