"""What options may be: one table for a recipe, which is checked before anything is loaded, and for the stages.

    check(SELECT, {"size": -1}, "select.")  ->  ValueError: select.size=-1 is negative or no number. ...

An option that is `None` is switched off and passes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from hf_lmmixup.records import SCORES


@dataclass(frozen=True)
class Bound:
    """The numbers from `low` to `high`; infinity and NaN are none.

    Attributes:
        fault: What is said of another one, after its name and value.
        low: The smallest number.
        high: The largest number.
        above: Whether `low` itself is too small.
    """

    fault: str
    low: float
    high: float = math.inf
    above: bool = False

    def admits(self, value: float) -> bool:
        """Whether a number is allowed."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)


Table: TypeAlias = Mapping[str, Bound | tuple[str, ...]]
"""Option -> the numbers that it may be, or the words."""

COUNT = Bound("must be at least 1.", 1)
AMOUNT = Bound("is negative or no number. Expected 0 or more.", 0)
POSITIVE = Bound("must be above 0.", 0, above=True)
SHARE = Bound("must lie between 0 and 1, or be None.", 0, 1)
THRESHOLD = Bound("is not in (0, 1].", 0, 1, above=True)
COSINE = Bound("is no cosine. Expected -1 to 1.", -1, 1)
SCORE = Bound(f"is no score. Expected {SCORES[0]} to {SCORES[-1] + 1}; the last one is above all.", 0, SCORES[-1] + 1)

SINGLETONS = ("keep", "edit", "drop")
"""What happens to rows that belong to no cluster: pass on without a cluster, be a cluster of one, be dropped."""

RUN: Table = {"limit": COUNT}
TRAINED_RUN: Table = {"seed": Bound("seeds no training. Expected 0 to 4294967295.", 0, 2**32 - 1)}
RATE: Table = {"threshold": SCORE}
DECONTAMINATE: Table = {"min_overlap": THRESHOLD, "min_similarity": THRESHOLD}
DEDUPLICATE: Table = {"max_similarity": COSINE}
FAITHFULNESS: Table = {"max_novelty": SHARE, "min_coverage": SHARE}
CLUSTER: Table = {"std_size": AMOUNT, "min_similarity": COSINE, "singletons": SINGLETONS}
LOCAL_MODEL: Table = {
    "batch_size": COUNT,
    "max_new_tokens": COUNT,
    "temperature": POSITIVE,
    "no_repeat_ngram_size": AMOUNT,
}
DISTILLER: Table = {
    **LOCAL_MODEL,
    "temperature": AMOUNT,
    "concurrency": COUNT,
    "max_prompt_tokens": COUNT,
    "prompt_price": AMOUNT,
    "completion_price": AMOUNT,
    "reading_steps": AMOUNT,
    "attempts": COUNT,
    "held_out": AMOUNT,
}
SELECT: Table = {
    "size": AMOUNT,
    "token_budget": AMOUNT,
    "min_score": SCORE,
    "max_similarity": COSINE,
    "fallback_share": SHARE,
    "distilled_share": Bound("is not a share. Expected 0 to 1, such as 0.5.", 0, 1),
}


def check(table: Table, options: Mapping[str, Any], where: str = "") -> None:
    """Refuse what an option may not be.

    Args:
        table: What is allowed; options that are not in it pass.
        options: Names and values.
        where: What stands before the names in messages, such as `select.`.

    Raises:
        ValueError: If a value is not allowed; names the option, the value and what is.
    """
    for name, value in options.items():
        allowed = table.get(name)
        if value is None or allowed is None:
            continue
        if isinstance(allowed, Bound):
            if not allowed.admits(value):
                raise ValueError(f"{where}{name}={value} {allowed.fault}")
        elif value not in allowed:
            raise ValueError(f"Unknown {where}{name}={value!r}. Expected one of {list(allowed)}.")


def check_sizes(min_size: int, max_size: int, mean_size: float, where: str = "") -> None:
    """Refuse sizes of clusters that no cluster can have.

    Raises:
        ValueError: If the bounds are not ordered, or the mean lies outside of them.
    """
    if not 1 <= min_size <= max_size:
        raise ValueError(f"{where}min_size={min_size}, max_size={max_size}. Expected 1 <= min_size <= max_size.")
    if not min_size <= mean_size <= max_size:
        raise ValueError(
            f"{where}mean_size={mean_size} lies outside of [{min_size}, {max_size}]. "
            "Move the mean between the bounds, or the bounds around the mean."
        )
