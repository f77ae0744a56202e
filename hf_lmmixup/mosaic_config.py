"""What a mosaic pass does: strategies and their shares, how many instructions go together, the token budget.

Mosaic-IT (arXiv 2405.13326) joins several instruction pairs into one example, without any model. Four strategies::

    primary   x1 x2 x3 -> y1 y2 y3                      plain concatenation
    format    + numbers, marks around every answer      and a sentence that asks for them
    permute   + "answer in reverse order" -> y3 y2 y1   ten orders
    maskout   + "skip the even numbers"   -> y1 y3      five ways to choose what is skipped

The number of instructions in a mosaic follows one of seven distributions. Example: `exponential` with at most 10 draws
r from Exp(1) until r < 10 and takes 10 - floor(r), so 10 comes up with probability 0.632, 9 with 0.233, 8 with 0.086.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


STRATEGIES = ("primary", "format", "permute", "maskout")

ORDERS = (
    "given",
    "reverse",
    "alphabetical",
    "reverse_alphabetical",
    "fewest_words",
    "most_words",
    "fewest_characters",
    "most_characters",
    "odd_then_even",
    "even_then_odd",
)
"""How `permute` orders the answers (Mosaic-IT's ten)."""

MASKS = ("given", "longest", "shortest", "odd", "even")
"""How `maskout` chooses what is skipped (Mosaic-IT's five); lengths are in words."""

MASK_SHARE = (0.1, 0.5)
"""Range of the share of instructions that `given`, `longest` and `shortest` skip; at least one (Mosaic-IT's code)."""

MAX_ITEMS = 10
MAX_TOKENS = 2000
"""Most instructions and most tokens in a mosaic (Mosaic-IT's defaults)."""

DECAYS: dict[str, Callable[[float], float]] = {
    "exponential": lambda x: 1 - math.exp(-x),
    "pareto": lambda x: x / (1 + x),
    "lognormal": lambda x: 0.5 * math.erfc(-math.log(x) / math.sqrt(2)) if x > 0 else 0.0,
    "logistic": lambda x: 1 / (1 + math.exp(-x / 2)),
}
"""Distribution functions of the amount by which a mosaic falls short of the maximum.

Exp(1); Pareto(1) shifted to start at 0 (the published code shifts NumPy's, which starts there already, once more);
lognormal(0, 1); logistic of scale 2, of which only the positive half counts.
"""

NUMBERS = ("uniform", "fixed", "max_length", *DECAYS)


@dataclass(frozen=True)
class MosaicConfig:
    """Settings of a mosaic.

    Args:
        strategies: Strategy -> weight. The default mixes the three that Mosaic-IT ships, in equal shares.
        number: Distribution of the number of instructions: one of `NUMBERS`.
        max_items: Most instructions in a mosaic; `max_length` ignores it.
        max_tokens: Most tokens in a mosaic, chat template included; `None` for no limit. Let the `max_length` of
            `SFTConfig` be at least this (TRL's default is 1,024), or answers are cut off.
        templates: Language of the sentences (`en`), or the path of a JSON file with your own.
        seed: Seed of everything random; every epoch derives its own from it.
        keep_apart: Column whose values never meet in one mosaic. Text, truth values and whole numbers are kept as they
            are; a column of floats is cut at its median into two halves, and a mosaic gets the mean of its rows.

    Raises:
        ValueError: If a value is not one of those.
    """

    strategies: Mapping[str, float] = field(default_factory=lambda: {"format": 1.0, "permute": 1.0, "maskout": 1.0})
    number: str = "uniform"
    max_items: int = MAX_ITEMS
    max_tokens: int | None = MAX_TOKENS
    templates: str = "en"
    seed: int = 0
    keep_apart: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.strategies) - set(STRATEGIES)):
            raise ValueError(f"Unknown strategy {unknown[0]!r}. Expected some of {list(STRATEGIES)}.")
        weights = self.strategies.values()
        if not weights or not all(0 <= weight < math.inf for weight in weights) or not sum(weights):
            raise ValueError(f"strategies={dict(self.strategies)} needs weights of 0 or more, one of them above 0.")
        if self.number not in NUMBERS:
            raise ValueError(f"Unknown number {self.number!r}. Expected one of {list(NUMBERS)}.")
        if self.max_items < 1:
            raise ValueError(f"max_items={self.max_items} must be 1 or more.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} must be 1 or more, or None for no limit.")
        if self.max_tokens is None and self.number == "max_length":
            raise ValueError("number='max_length' fills the token budget, so max_tokens must be a number.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be 0 or more.")


def item_probabilities(number: str, max_items: int) -> np.ndarray:
    """Probabilities of 1, 2, ... `max_items` instructions in a mosaic.

    The four decaying distributions draw a shortfall r, again if r >= `max_items`, and take `max_items - floor(r)`:
    P(k) = (F(max_items - k + 1) - F(max_items - k)) / (F(max_items) - F(0)).

    Args:
        number: `uniform`, `fixed`, `exponential`, `pareto`, `lognormal` or `logistic`.
        max_items: The maximum.

    Returns:
        (max_items,) probabilities; they add up to 1.
    """
    if number == "uniform":
        return np.full(max_items, 1 / max_items)
    if number == "fixed":
        return np.eye(max_items)[-1]
    ends = np.array([DECAYS[number](float(x)) for x in range(max_items, -1, -1)])
    shortfalls = ends[:-1] - ends[1:]
    return shortfalls / shortfalls.sum()
