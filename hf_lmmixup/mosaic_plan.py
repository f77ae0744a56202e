"""Which rows share a mosaic, with which strategy, and which of them are skipped: decided on numbers, before any text.

A pass goes once through all rows in random order. A mosaic is closed when it has as many rows as were drawn for it, or
when the next row would exceed the token budget. Rows that `maskout` skips line up again and are answered in a later
mosaic of the same pass. One plan::

    MosaicPlan(rows=[17, 4, 9], strategy="maskout", method="odd", masked=(0, 2), ...)   # answers row 4 only

Tokens are counted once per row; a mosaic's size is the sum over its rows, plus the marks of its layout, its sentences
and the chat template. Method: Mosaic-IT, arXiv 2405.13326.
"""

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hf_lmmixup.mosaic_config import MASK_SHARE, MASKS, ORDERS, MosaicConfig, item_probabilities
from hf_lmmixup.mosaic_costs import TemplateCosts
from hf_lmmixup.mosaic_templates import Templates


UNWRAPPED_SHARE = 0.5
"""How often answers are numbered only, without marks around them (Mosaic-IT)."""

UNNUMBERED_SHARE = 0.1
"""How often wrapped answers of the strategy `format` have no number (Mosaic-IT)."""

UNLIMITED = 1 << 40
BLOCK = 1024


class Draws(NamedTuple):
    """Numbers in [0, 1) that decide the details of a mosaic; any worker writes the same text from them."""

    mask_share: float
    shuffle: float
    number_gap: float
    task_gap: float
    sentence_gap: float
    sentences_last: float
    with_intro: float
    intro: float
    with_numbered: float
    numbered: float
    wrapped: float
    method: float
    ties: float
    sequence: float
    again: float


SHAPE_DRAWS = 5
"""Random numbers for strategy, wrapping, marks, numbering and method, before those of `Draws`."""


TIED = frozenset(
    ["alphabetical", "reverse_alphabetical", "fewest_words", "most_words", "fewest_characters", "most_characters"]
    + ["longest", "shortest"]
)
"""Methods that compare instructions, so a sentence must say what happens to equal ones."""

NO_DRAWS = Draws(*[0.0] * len(Draws._fields))
"""For rows that pass unchanged."""


@dataclass(slots=True)
class MosaicPlan:
    """One mosaic, before its text.

    Attributes:
        rows: Row numbers, in the order of the prompt.
        strategy: One of `STRATEGIES`; a mosaic of one row is that row, whatever stands here.
        method: The order or the way of masking, else empty.
        number: Which way of numbering, or -1 for none.
        wrapper: Which pair of marks, or -1 for none.
        draws: What decides its details.
        masked: Places in `rows` that are not answered.
        reason: Why the row passes unchanged, `overlong` or `unsupported`; empty for mosaics.
    """

    rows: list[int]
    strategy: str
    method: str
    number: int
    wrapper: int
    draws: Draws
    masked: tuple[int, ...] = ()
    reason: str = ""

    def sentences(self, *, wrapped: bool) -> list[tuple[str, float]]:
        """The meta-instructions of the first turn: type and draw of the phrasing, in the order of writing.

        Args:
            wrapped: Whether answers stand between marks.
        """
        draws, method = self.draws, self.method
        chosen: list[tuple[str, float]] = []
        if self.strategy == "primary":
            return chosen
        if draws.with_intro < 0.5:
            chosen.append(("intro", draws.intro))
        if self.number >= 0 and draws.with_numbered < 0.5:
            chosen.append(("numbered", draws.numbered))
        if wrapped:
            chosen.append(("wrapped", draws.wrapped))
        if method:
            chosen.append((("order_" if self.strategy == "permute" else "mask_") + method, draws.method))
            if method in TIED:
                chosen.append(("ties", draws.ties))
        return chosen


@dataclass(frozen=True)
class RowNumbers:
    """What planning knows of n rows in g groups.

    Attributes:
        tokens: (n,) tokens of all texts of a row.
        words: (n,) words of its first instruction.
        groups: (n,) rows of one group may be joined; -1 for rows that may not.
        turns: (g,) turns of each group.
        overhead: (g,) tokens that every example of a group has besides the texts of its rows.
    """

    tokens: np.ndarray
    words: Sequence[int]
    groups: np.ndarray
    turns: list[int]
    overhead: list[int]


@dataclass(slots=True)
class _Opened:
    plan: MosaicPlan
    limit: int
    room: int
    per_row: int


class PassPlanner:
    """Plans passes over rows.

    Args:
        rows: What is known of the rows.
        config: Strategies, number of instructions, budget.
        templates: For how many ways to number and to wrap there are.
        costs: Tokens of the templates.
    """

    def __init__(self, rows: RowNumbers, config: MosaicConfig, templates: Templates, costs: TemplateCosts) -> None:
        self.rows, self.config, self.templates, self.costs = rows, config, templates, costs
        self.budget = UNLIMITED if config.max_tokens is None else config.max_tokens
        self._tokens, self._groups = rows.tokens.tolist(), rows.groups.tolist()
        overhead = np.asarray([*rows.overhead, 0])[rows.groups]  # the last one is that of group -1
        self._apart = ((rows.groups < 0) | (rows.tokens + overhead > self.budget)).tolist()
        self.tight = 0

    def plan(self, rng: np.random.Generator) -> list[MosaicPlan]:
        """One pass: every row is answered in exactly one mosaic.

        Sets `tight` to the number of mosaics that the budget closed.

        Args:
            rng: Where the randomness comes from.

        Returns:
            Plans in the order in which mosaics were closed, so a skipped row is answered after it was skipped.
        """
        shapes = self._shapes(rng)
        plans: list[MosaicPlan] = []
        opened: dict[int, _Opened] = {}
        self.tight = 0
        queue = rng.permutation(len(self._tokens)).tolist()
        while queue:
            returning = self._fill(queue, shapes, opened, plans)
            if not returning:
                for mosaic in opened.values():
                    returning += self._close(mosaic.plan, plans)
                opened.clear()
            queue = [returning[place] for place in rng.permutation(len(returning))]
        return plans

    def size(self, plan: MosaicPlan) -> int:
        """Upper bound of the tokens of a mosaic; exact for a lone row."""
        group = self._groups[plan.rows[0]]
        tokens = sum(self._tokens[row] for row in plan.rows)
        if len(plan.rows) == 1:
            return tokens + self.rows.overhead[group]
        room, per_row = self._room(plan, group)
        return tokens + self.budget - room + per_row * len(plan.rows)

    def group(self, plan: MosaicPlan) -> int:
        """The group that the rows of a mosaic belong to."""
        return self._groups[plan.rows[0]]

    def _fill(
        self,
        queue: list[int],
        shapes: Iterator[tuple[int, MosaicPlan]],
        opened: dict[int, _Opened],
        plans: list[MosaicPlan],
    ) -> list[int]:
        """Put the rows of a queue into mosaics and return those that were skipped there."""
        returning: list[int] = []
        groups, sizes, apart = self._groups, self._tokens, self._apart
        for row in queue:
            group, tokens = groups[row], sizes[row]
            if apart[row]:
                reason = "unsupported" if group < 0 else "overlong"
                plans.append(MosaicPlan([row], "primary", "", -1, -1, NO_DRAWS, reason=reason))
                continue
            mosaic = opened.get(group)
            if mosaic is not None and tokens + mosaic.per_row > mosaic.room:
                self.tight += 1
                returning += self._close(mosaic.plan, plans)
                mosaic = None
            if mosaic is None:
                limit, plan = next(shapes)
                mosaic = opened[group] = _Opened(plan, limit, *self._room(plan, group))
            rows = mosaic.plan.rows
            rows.append(row)
            mosaic.room -= tokens + mosaic.per_row
            if len(rows) == mosaic.limit:
                returning += self._close(mosaic.plan, plans)
                del opened[group]
        return returning

    def _room(self, plan: MosaicPlan, group: int) -> tuple[int, int]:
        """Tokens left for rows in an empty mosaic, and tokens that each row takes besides its texts."""
        turns = self.rows.turns[group]
        again = [("again", plan.draws.again)] * (turns - 1) if plan.strategy != "primary" else []
        sentences = plan.sentences(wrapped=plan.wrapper >= 0) + again
        room = self.budget - self.rows.overhead[group] - self.costs.sentences(sentences, plan.wrapper)
        listed = self.costs.sequence if plan.method == "given" else 0
        return room, turns * self.costs.item(plan.number, plan.wrapper) + listed

    def _close(self, plan: MosaicPlan, plans: list[MosaicPlan]) -> list[int]:
        """Finish a mosaic: choose what `maskout` skips and return those rows."""
        plans.append(plan)
        if plan.strategy != "maskout" or len(plan.rows) == 1:
            return []
        plan.masked = self._mask(plan)
        return [plan.rows[place] for place in plan.masked]

    def _mask(self, plan: MosaicPlan) -> tuple[int, ...]:
        places = range(len(plan.rows))
        if plan.method in ("odd", "even"):
            return tuple(places[plan.method == "even" :: 2])  # the number of place 0 is 1
        low, high = MASK_SHARE
        count = max(1, int(len(places) * (low + (high - low) * plan.draws.mask_share)))
        if plan.method == "given":
            return tuple(sorted(random.Random(int(plan.draws.shuffle * 2**53)).sample(places, count)))
        sign = -1 if plan.method == "longest" else 1
        lengths = [sign * int(self.rows.words[row]) for row in plan.rows]
        return tuple(sorted(sorted(places, key=lengths.__getitem__)[:count]))

    def _shapes(self, rng: np.random.Generator) -> Iterator[tuple[int, MosaicPlan]]:
        """Endless empty mosaics with the number of rows that they may take."""
        config = self.config
        names = list(config.strategies)
        shares = np.cumsum([config.strategies[name] for name in names])
        steps = (shares / shares[-1]).tolist()
        filling = config.number == "max_length"
        counts = np.arange(1, config.max_items + 1)
        probabilities = None if filling else item_probabilities(config.number, config.max_items)
        while True:
            limits = [UNLIMITED] * BLOCK if filling else rng.choice(counts, size=BLOCK, p=probabilities).tolist()
            for limit, draws in zip(
                limits, rng.random((BLOCK, SHAPE_DRAWS + len(Draws._fields))).tolist(), strict=True
            ):
                yield limit, self._shape(names[bisect_right(steps, draws[0])], draws)

    def _shape(self, strategy: str, draws: list[float]) -> MosaicPlan:
        _, wrap, wrapper, number, method = draws[:SHAPE_DRAWS]
        wording = tuple.__new__(Draws, draws[SHAPE_DRAWS:])
        if strategy == "primary":
            return MosaicPlan([], strategy, "", -1, -1, wording)
        wrappers, numbers = len(self.templates.wrappers), len(self.templates.numbers)
        plan = MosaicPlan([], strategy, "", int(number * numbers), int(wrapper * wrappers), wording)
        if wrap < UNWRAPPED_SHARE:
            plan.wrapper = -1
        elif strategy == "format" and method < UNNUMBERED_SHARE:
            plan.number = -1  # only here: every instruction of the other strategies refers to numbers
        if strategy == "permute":
            plan.method = ORDERS[int(method * len(ORDERS))]
        elif strategy == "maskout":
            plan.method = MASKS[int(method * len(MASKS))]
        return plan
