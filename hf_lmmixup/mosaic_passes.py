r"""Passes over one set of rows: counted once, planned for every epoch, written block by block.

One example of a pass (text rows; conversations have `messages`, or lists of messages)::

    {"id": "0c1e...", "prompt": "Answer from the last task back to the first.\n\n1. Name a prime.\n2. Sky color?",
     "completion": "2. Blue.\n\n1. 7", "sources": ["5f1d...", "77aa..."], "strategy": "permute", "method": "reverse",
     "order": [2, 1], "masked": [], "layout": {"number": "{n}. ", "open": "", "close": "", "separator": "\n\n"}}

`sources` are the rows in the order of the prompt, `order` the numbers of the answered ones as they are answered,
`masked` the numbers of the skipped ones. A row alone has the strategy `single`, or `overlong` or `unsupported`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

from hf_lmmixup.mosaic_config import MosaicConfig
from hf_lmmixup.mosaic_costs import template_costs
from hf_lmmixup.mosaic_length import fit_length, reworded, target_length
from hf_lmmixup.mosaic_plan import UNLIMITED, Draws, MosaicPlan, PassPlanner
from hf_lmmixup.mosaic_rows import Item, RowForm, RowReader, conversation_id
from hf_lmmixup.mosaic_templates import load_templates
from hf_lmmixup.mosaic_text import Layout, MosaicWriter
from hf_lmmixup.mosaic_tokens import KeptColumn, TokenCounter, checked_counts, describe_all, row_numbers
from hf_lmmixup.records import Progress


PROVENANCE = Features(
    {
        "id": Value("string"),
        "sources": List(Value("string")),
        "strategy": Value("string"),
        "method": Value("string"),
        "order": List(Value("int32")),
        "masked": List(Value("int32")),
        "layout": {
            "number": Value("string"),
            "open": Value("string"),
            "close": Value("string"),
            "separator": Value("string"),
        },
    }
)
"""Columns that every mosaic has besides its text."""

ALONE = Layout("", "", "", "")
BLOCK_MOSAICS = 2000


@dataclass(frozen=True)
class MosaicReport:
    """The books of one pass.

    Attributes:
        rows: Rows that went in; each is answered in exactly one example.
        examples: Examples that came out.
        strategies: How many of each: `primary`, `format`, `permute`, `maskout`, `single` (one row was drawn or left
            over), `overlong` (a row beyond the token budget, unchanged), `unsupported` (a row of another shape,
            unchanged).
        masked: How often a row was skipped and answered later.
    """

    rows: int
    examples: int
    strategies: dict[str, int]
    masked: int

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in self.strategies.items())
        return f"{self.rows} rows in {self.examples} examples ({kinds}); {self.masked} skipped and answered later"


def load_writer(config: MosaicConfig, counter: TokenCounter) -> MosaicWriter:
    """Read the templates that the settings name and count their tokens."""
    templates = load_templates(config.templates)
    bound = config.max_items if config.number != "max_length" else config.max_tokens or UNLIMITED
    return MosaicWriter(templates, template_costs(templates, counter, bound))


class MosaicPasses:
    """All passes over one set of rows, which are counted once.

    Args:
        rows: A dataset, or the columns of a batch.
        form: Their form.
        counter: Counts tokens.
        config: The settings.
        writer: Writes mosaics; see `load_writer`.
        token_counts: Tokens of each row, or the column that holds them, instead of counting.
        num_proc: Processes that count.
        progress: Told how many rows are counted.

    Raises:
        ValueError: If the column that is kept apart, or given token counts, hold something else.
    """

    def __init__(
        self,
        rows: Dataset | Mapping[str, Sequence[Any]],
        form: RowForm,
        counter: TokenCounter,
        config: MosaicConfig,
        writer: MosaicWriter,
        *,
        token_counts: Sequence[int] | str | None,
        num_proc: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.reader, self.config, self.writer = RowReader(rows, form), config, writer
        known = token_counts is not None or config.max_tokens is None
        described = describe_all(self.reader, None if known else counter, num_proc, progress)
        if token_counts is not None:
            given = rows[token_counts][:] if isinstance(token_counts, str) else token_counts
            described["tokens"] = checked_counts(given, len(self.reader))
        self.kept: KeptColumn | None = None
        if config.keep_apart is not None:
            self.kept = KeptColumn.find(config.keep_apart, rows[config.keep_apart][:], form.known)
        budgeted = config.max_tokens is not None
        numbers = row_numbers(described, form, counter, self.kept, budgeted=budgeted, words=self.reader.words)
        self.planner = PassPlanner(numbers, config, writer.templates, writer.costs)
        self._length: int | None = None
        self._latest: tuple[int, list[MosaicPlan]] = (-1, [])

    def __len__(self) -> int:
        if self._length is None:
            self.plans(0)
        return self._length or 0

    @property
    def features(self) -> Features:
        """Columns of the examples."""
        features = Features({**self.reader.form.features, **PROVENANCE})
        if self.kept is not None:
            features[self.kept.name] = self.kept.feature
        return features

    def generator(self, key: int) -> np.random.Generator:
        """All randomness of one pass."""
        return np.random.default_rng([self.config.seed, key])

    def plans(self, key: int) -> list[MosaicPlan]:
        """The plans of one pass; all passes have the same length.

        Args:
            key: 0 for the first pass; any other number is another pass.
        """
        if self._latest[0] != key:
            plans = self._plan(key)
            self._latest = key, plans
        return self._latest[1]

    def examples(self, plans: Sequence[MosaicPlan]) -> Iterator[dict[str, Any]]:
        """Write mosaics, in the order of their plans."""
        rest = iter(plans)
        while block := list(islice(rest, BLOCK_MOSAICS)):
            items, ids = self.reader.take([row for plan in block for row in plan.rows])
            start = 0
            for plan in block:
                stop = start + len(plan.rows)
                yield self._example(plan, items[start:stop], ids[start:stop])
                start = stop

    def dataset(self, key: int = 0, *, num_proc: int | None = None, progress: Progress | None = None) -> Dataset:
        """One pass, written out.

        Args:
            key: Which pass.
            num_proc: Processes that write; the result does not depend on it.
            progress: Told how many mosaics are written.
        """
        plans, features = self.plans(key), self.features
        told = progress or (lambda *_: None)
        told("writing mosaics", 0, len(plans))
        if num_proc is not None and num_proc > 1:
            numbers = Dataset.from_dict({"mosaic": range(len(plans))})
            write = _BlockWriter(self, plans)
            return numbers.map(
                write,
                batched=True,
                batch_size=BLOCK_MOSAICS,
                num_proc=min(num_proc, max(1, len(plans))),
                input_columns=["mosaic"],
                remove_columns=["mosaic"],
                features=features,
                load_from_cache_file=False,
                desc="Writing mosaics",
            )
        examples = self.examples(plans)
        tables = [features.arrow_schema.empty_table()]
        while block := list(islice(examples, BLOCK_MOSAICS)):
            tables.append(pa.table(columns_of(block, features), schema=features.arrow_schema))
            told("writing mosaics", sum(map(len, tables)), len(plans))
        table = pa.concat_tables(tables)
        return Dataset(table, fingerprint=_fingerprint(table))

    def report(self, key: int = 0) -> MosaicReport:
        """The books of one pass.

        Raises:
            RuntimeError: If they do not balance, which would be a fault of this module.
        """
        plans = self.plans(key)
        answered = sum(len(plan.rows) - len(plan.masked) for plan in plans)
        if answered != len(self.planner.rows.tokens):
            raise RuntimeError(f"{len(self.planner.rows.tokens)} rows went in and {answered} answers came out.")
        kinds = Counter(_strategy(plan) for plan in plans)
        return MosaicReport(answered, len(plans), dict(sorted(kinds.items())), sum(len(plan.masked) for plan in plans))

    def _plan(self, key: int) -> list[MosaicPlan]:
        rng = self.generator(key)
        plans = self.planner.plan(rng)
        if self._length is None:
            first = plans if key == 0 else self.planner.plan(self.generator(0))
            fitted = fit_length(self.planner, first, target_length(self.planner, first)) or first
            self._length = len(fitted)
        fitted_plans = fit_length(self.planner, plans, self._length)
        if fitted_plans is None:  # the rows of the first pass stay together; wording and orders are new
            first = self._plan(0)
            draws = rng.random((len(first), len(Draws._fields))).tolist()
            return [reworded(self.planner, plan, Draws(*row)) for plan, row in zip(first, draws, strict=True)]
        return fitted_plans

    def _example(self, plan: MosaicPlan, items: list[Item], ids: list[str]) -> dict[str, Any]:
        form = self.reader.form
        if len(plan.rows) == 1:
            item, order, layout, method = items[0], [1], ALONE, ""
            text = item.raw if item.raw is not None else form.write(item.system, item.users, item.assistants)
            identifier = ids[0]
        else:
            written = self.writer.write(plan, items)
            order, layout, method = written.order, written.layout, written.method
            text = form.write(items[0].system, written.users, written.assistants)
            identifier = conversation_id(items[0].system, written.users, written.assistants)
        example = {
            **text,
            "id": identifier,
            "sources": ids,
            "strategy": _strategy(plan),
            "method": method,
            "order": order,
            "masked": [place + 1 for place in plan.masked] if plan.masked else [],
            "layout": layout._asdict(),
        }
        if self.kept is not None:
            answered = [row for place, row in enumerate(plan.rows) if place not in plan.masked]
            example[self.kept.name] = self.kept.of(answered)
        return example


class _BlockWriter:
    """A function for `Dataset.map`, which hands it numbers of mosaics."""

    def __init__(self, passes: MosaicPasses, plans: list[MosaicPlan]) -> None:
        self.passes, self.plans = passes, plans

    def __call__(self, numbers: list[int]) -> dict[str, list[Any]]:
        examples = list(self.passes.examples([self.plans[number] for number in numbers]))
        return columns_of(examples, self.passes.features)


def columns_of(examples: Sequence[dict[str, Any]], features: Features) -> dict[str, list[Any]]:
    """Examples, column by column."""
    return {column: [example[column] for example in examples] for column in features}


def _fingerprint(table: pa.Table) -> str:
    """A hash of the contents; the one that `datasets` makes pickles the whole table first."""
    chunks = [chunk for column in table.columns for chunk in column.chunks]
    buffers = [buffer for chunk in chunks for buffer in chunk.buffers() if buffer is not None]
    return Hasher.hash_bytes([table.schema.to_string().encode(), *buffers])


def _strategy(plan: MosaicPlan) -> str:
    return plan.strategy if len(plan.rows) > 1 else plan.reason or "single"
