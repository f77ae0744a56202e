"""The construction of MIXTURE: segments in, checked clusters out, every loss counted.

Steps, after arXiv 2510.20449: write a target from each segment and rate it; keep the well rated; make weak variants;
mix some with a semantically close target of another article; add typos; write the reasoning; check; divide by article
into train and test and by row into SFT and GRPO. One cluster that comes out::

    {"id": "51b0...", "task_type": "qa", "sources": ["Q: ...", ...], "target": "Q: ...", "reasoning": "...",
     "topic": "Tides", "source": "my wiki (CC-BY-4.0)"}

Given the writer's answers the result depends on nothing but the segments and the plan.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hf_lmmixup.articles import Segment
from hf_lmmixup.construction_plan import Cluster, Draft, Plan, Target, Variant, Writer, draw, make_drafts
from hf_lmmixup.corruption import merge_topics, typos
from hf_lmmixup.encoder import Encoder
from hf_lmmixup.near_duplicates import near_duplicates
from hf_lmmixup.neighbors import top_k
from hf_lmmixup.records import row_id, row_seed
from hf_lmmixup.target_checks import check_cluster, leaks, supported


logger = logging.getLogger(__name__)

CLOSE_TARGETS = 16
"""Neighbors looked at in search of one from another article."""


@dataclass
class Construction:
    """What was made.

    Attributes:
        clusters: Form (`sft`, `grpo`) -> split -> clusters, as `mixture_rows` reads them.
        dropped: Reason -> how many drafts ended there; together with the clusters they are all drafts.
        fused: How many clusters got a variant mixed with another topic.
        noisy: How many variants got typos on top.
    """

    clusters: dict[str, dict[str, list[dict[str, Any]]]]
    dropped: Counter[str] = field(default_factory=Counter)
    fused: int = 0
    noisy: int = 0

    def count(self) -> int:
        """How many clusters came out."""
        return sum(len(clusters) for splits in self.clusters.values() for clusters in splits.values())


def construct(
    segments: Sequence[Segment],
    writer: Writer,
    plan: Plan,
    *,
    encoder: Encoder | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Construction:
    """Make clusters from segments.

    Args:
        segments: The source texts, each once.
        writer: Who writes targets, variants and reasoning.
        plan: The numbers.
        encoder: Finds close targets; without one no topics are mixed.
        progress: Called with the name of each step as it begins.

    Returns:
        The clusters and what was lost on the way.
    """
    made = Construction({form: {"train": [], "test": []} for form in ("sft", "grpo")})
    progress("targets")
    targets = _keep_rated(writer.targets(make_drafts(segments, plan)), plan, made)
    targets = _apart(targets, plan, made)
    progress("variants")
    variants = writer.variants(targets, plan)
    clusters = [
        Cluster(target.draft, target.task_type, str(target.text), int(target.score or 0), list(found))
        for target, found in zip(targets, variants, strict=True)
    ]
    progress("fusion")
    if encoder is not None and plan.fusion_share:
        made.fused = _fuse(clusters, plan, encoder)
    made.noisy = sum(_add_noise(cluster, plan) for cluster in clusters)
    progress("reasoning")
    clusters = _explain(_keep_sound(clusters, made), writer, made)
    progress("division")
    _divide(clusters, plan, made)
    logger.info("%d clusters from %d segments; dropped: %s", made.count(), len(segments), dict(made.dropped))
    return made


def _keep_rated(targets: Sequence[Target], plan: Plan, made: Construction) -> list[Target]:
    kept, seen = [], set()
    for target in targets:
        if target.text is None or target.score is None:
            made.dropped[target.reason or "not rated"] += 1
        elif target.score < plan.min_score:
            made.dropped[f"target rated below {plan.min_score}"] += 1
        elif target.text in seen:
            made.dropped["target written before"] += 1
        else:
            seen.add(target.text)
            kept.append(target)
    return kept


def _apart(targets: Sequence[Target], plan: Plan, made: Construction) -> list[Target]:
    """Drop the test targets that nearly repeat a train target, in their own words or in their source's."""
    sides: dict[str, list[Target]] = {"train": [], "test": []}
    for target in targets:
        sides[plan.split_of(target.draft.segment.article)].append(target)
    repeated = set()
    for text in (lambda target: str(target.text), lambda target: target.draft.segment.text):
        found = near_duplicates([text(t) for t in sides["test"]], [text(t) for t in sides["train"]])
        repeated |= {sides["test"][number].draft.id for number in found}
    if repeated:
        made.dropped["test target nearly repeats a train target"] += len(repeated)
    return [target for target in targets if target.draft.id not in repeated]


def _fuse(clusters: Sequence[Cluster], plan: Plan, encoder: Encoder) -> int:
    """Give some clusters a variant that drifts to a close target of another article; returns how many got one.

    Targets are compared within a task type and a split only, so that no test text enters a train variant.
    """
    groups: dict[tuple[str, str], list[Cluster]] = {}
    for cluster in clusters:
        groups.setdefault((cluster.task_type.value, plan.split_of(cluster.draft.segment.article)), []).append(cluster)
    fused = 0
    for group in groups.values():
        chosen = [c for c in group if draw(plan.seed, f"fusion:{c.draft.id}") < plan.fusion_share]
        if not chosen or len(group) < 2:
            continue
        places = {cluster.draft.id: place for place, cluster in enumerate(group)}
        embeddings = encoder.encode([cluster.target for cluster in group])
        queries = embeddings[[places[cluster.draft.id] for cluster in chosen]]
        similarities, indices = top_k(embeddings, queries, min(CLOSE_TARGETS, len(group)))
        for cluster, row, found in zip(chosen, similarities, indices, strict=True):
            fused += _fuse_one(cluster, [group[i] for i in found], row, plan)
    return fused


def _fuse_one(cluster: Cluster, others: Sequence[Cluster], similarities: np.ndarray, plan: Plan) -> bool:
    low, high = plan.fusion_similarity
    for other, similarity in zip(others, similarities, strict=True):
        if other.draft.segment.article == cluster.draft.segment.article or not low <= similarity <= high:
            continue
        text = merge_topics(cluster.target, seed=row_seed(plan.seed, cluster.draft.id), other=other.target)
        if leaks(cluster.target, text):
            return False
        fused = Variant(text, "cross-topic merging")
        if len(cluster.variants) < plan.sizes[1]:
            cluster.variants.append(fused)
        else:
            cluster.variants[-1] = fused
        return True
    return False


def _add_noise(cluster: Cluster, plan: Plan) -> int:
    """Misspell words of some variants, where the variants together still hold the target's facts."""
    noisy = 0
    for place, variant in enumerate(cluster.variants):
        name = f"noise:{cluster.draft.id}:{place}"
        if draw(plan.seed, name) >= plan.noise_share:
            continue
        text = typos(variant.text, seed=row_seed(plan.seed, name), rate=plan.noise_rate)
        changed = [text if i == place else other.text for i, other in enumerate(cluster.variants)]
        if supported(cluster.target, changed):
            cluster.variants[place] = replace(variant, text=text)
            noisy += 1
    return noisy


def _keep_sound(clusters: Sequence[Cluster], made: Construction) -> list[Cluster]:
    """Drop what fails a check; the variants of the others are shuffled, so that their order says nothing."""
    kept = []
    for cluster in clusters:
        cluster.variants.sort(key=lambda variant: row_id(cluster.draft.id, variant.text))
        reason = check_cluster(cluster.target, [variant.text for variant in cluster.variants], cluster.task_type)
        if reason:
            made.dropped[reason] += 1
        else:
            kept.append(cluster)
    return kept


def _explain(clusters: Sequence[Cluster], writer: Writer, made: Construction) -> list[Cluster]:
    explained = []
    for cluster, reasoning in zip(clusters, writer.reasoning(clusters), strict=True):
        if reasoning:
            explained.append(replace(cluster, reasoning=reasoning))
        else:
            made.dropped["no reasoning written"] += 1
    return explained


def _divide(clusters: Sequence[Cluster], plan: Plan, made: Construction) -> None:
    """By article into train and test, and each of them by the hash of the row into SFT and GRPO."""
    for split in ("train", "test"):
        rows = [_row(cluster) for cluster in clusters if plan.split_of(cluster.draft.segment.article) == split]
        rows.sort(key=lambda row: draw(plan.seed, f"form:{row['id']}"))
        border = round(plan.sft_share * len(rows))
        made.clusters["sft"][split], made.clusters["grpo"][split] = rows[:border], rows[border:]


def _row(cluster: Cluster) -> dict[str, Any]:
    draft: Draft = cluster.draft
    return {
        "id": draft.id,
        "task_type": cluster.task_type.value,
        "sources": [variant.text for variant in cluster.variants],
        "target": cluster.target,
        "reasoning": cluster.reasoning,
        "topic": draft.segment.article,
        "source": f"{draft.segment.source} ({draft.segment.license})",
    }
