"""Passes of one length: every epoch has as many mosaics as the first one, so a trainer can count its steps beforehand.

How many mosaics a pass needs varies by a percent or two, because different rows meet. A pass with too many has small
mosaics merged, one with too few has large ones cut in halves; `maskout` mosaics stay as they are, and so does the rule
that a skipped row is answered later. Example: 1,685 mosaics for a target of 1,679 become 1,679 by six merges such as
1 + 2 rows -> 3 rows.
"""

import math
from dataclasses import replace

from hf_lmmixup.mosaic_plan import Draws, MosaicPlan, PassPlanner


def target_length(planner: PassPlanner, plans: list[MosaicPlan]) -> int:
    """The common number of mosaics of all passes: that of the first one and a little slack.

    Merging is hard where the budget closes mosaics, so the slack is half the square root of how many it closed: two
    standard deviations or more of the difference between two passes.

    Args:
        planner: Right after it planned the first pass.
        plans: That pass.
    """
    return min(len(plans) + math.ceil(math.sqrt(planner.tight) / 2), sum(len(plan.rows) for plan in plans))


def fit_length(planner: PassPlanner, plans: list[MosaicPlan], target: int) -> list[MosaicPlan] | None:
    """Merge or cut mosaics until there are `target` of them.

    Args:
        planner: Knows sizes and groups.
        plans: One pass; not changed.
        target: How many mosaics are wanted.

    Returns:
        The pass, or `None` if it cannot be brought to that length.
    """
    while len(plans) > target:
        merged = _merge(planner, plans, len(plans) - target)
        if len(merged) == len(plans):
            return None
        plans = merged
    while len(plans) < target:
        cut = _cut(planner, plans, target - len(plans))
        if len(cut) == len(plans):
            return None
        plans = cut
    return plans


def reworded(planner: PassPlanner, plan: MosaicPlan, draws: Draws) -> MosaicPlan:
    """A mosaic with other sentences, orders and gaps; as it was where these would exceed the budget."""
    other = replace(plan, draws=draws)
    return other if planner.size(other) <= planner.budget else plan


def _merge(planner: PassPlanner, plans: list[MosaicPlan], surplus: int) -> list[MosaicPlan]:
    """One round of at most `surplus` merges: the smallest mosaic joins the next larger one of its group."""
    config = planner.config
    most = math.inf if config.number == "max_length" else config.max_items
    free = [place for place, plan in enumerate(plans) if not plan.masked and not plan.reason]
    free.sort(key=lambda place: (planner.group(plans[place]), planner.size(plans[place]), place))
    joined_at: dict[int, MosaicPlan] = {}
    gone: set[int] = set()
    for first, second in (sorted(pair) for pair in zip(free, free[1:], strict=False)):
        if len(gone) == surplus:
            break
        if {first, second} & gone or {first, second} & joined_at.keys():
            continue
        joined = replace(plans[second], rows=plans[first].rows + plans[second].rows)
        if joined.strategy == "maskout":
            joined.strategy, joined.method = "format", ""
        alike = planner.group(plans[first]) == planner.group(plans[second])
        if alike and len(joined.rows) <= most and planner.size(joined) <= planner.budget:
            joined_at[second] = joined
            gone.add(first)
    return [joined_at.get(place, plan) for place, plan in enumerate(plans) if place not in gone]


def _cut(planner: PassPlanner, plans: list[MosaicPlan], missing: int) -> list[MosaicPlan]:
    """One round of at most `missing` cuts: the mosaics with most rows fall into halves."""
    free = [place for place, plan in enumerate(plans) if len(plan.rows) > 1 and not plan.masked]
    chosen = set(sorted(free, key=lambda place: (-len(plans[place].rows), place))[:missing])
    cut: list[MosaicPlan] = []
    for place, plan in enumerate(plans):
        if place not in chosen:
            cut.append(plan)
            continue
        half = len(plan.rows) // 2
        cut.append(replace(plan, rows=plan.rows[:half]))
        cut.append(reworded(planner, replace(plan, rows=plan.rows[half:]), Draws(*plan.draws[::-1])))
    return cut
