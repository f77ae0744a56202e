r"""Mosaic-IT: several instruction pairs in one example, without any model; fewer, longer, richer steps.

In training it is one argument, `SFTTrainer(..., train_dataset=mosaic(dataset, tokenizer))`. Every epoch is another
pass, so E epochs never mean E copies on disk. One row of a pass::

    {"prompt": "Skip the odd numbers; only even ones count.\n\n(1) Name a prime.\n(2) What color is the sky?",
     "completion": "(2) Blue.", "strategy": "maskout", "method": "odd", "order": [2], "masked": [1], ...}

Row 1, which is skipped here, is answered in a later example of the same pass: every pass answers every row exactly
once. A row beyond the token budget passes unchanged and is counted, and so does one of a shape that cannot be joined.
Source: Mosaic-IT, arXiv 2405.13326; the sentences are our own.
"""

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from hf_lmmixup.mosaic_config import MosaicConfig
from hf_lmmixup.mosaic_files import read_turns
from hf_lmmixup.mosaic_passes import MosaicPasses, MosaicReport, load_writer
from hf_lmmixup.mosaic_rows import RowForm, answers_of
from hf_lmmixup.mosaic_stream import MosaicDataset, MosaicWindow, epoch_key
from hf_lmmixup.mosaic_text import Layout
from hf_lmmixup.mosaic_tokens import TokenCounter
from hf_lmmixup.records import Progress
from hf_lmmixup.stage_files import check_output, write_rows


logger = logging.getLogger(__name__)

BUFFER_ROWS = 10_000
"""Rows of a stream that are shuffled and joined at a time."""


def mosaic(
    dataset: Dataset | IterableDataset,
    tokenizer: Any = None,
    config: MosaicConfig | None = None,
    *,
    token_counts: Sequence[int] | str | None = None,
    num_proc: int | None = None,
    buffer_size: int = BUFFER_ROWS,
) -> IterableDataset:
    """Mosaics made lazily, another pass in every epoch, for `SFTTrainer` and any other reader of `datasets`.

    Args:
        dataset: Rows of any form: prompt/completion (text or messages), messages, ShareGPT or Alpaca columns.
        tokenizer: What the model is trained with, or its name; counts the tokens, once per row.
        config: Strategies, number of instructions, token budget, seed.
        token_counts: Tokens of each row, or the column that holds them, instead of counting.
        num_proc: Processes that count tokens.
        buffer_size: For an `IterableDataset`: rows that are shuffled and joined at a time.

    Returns:
        Of a `Dataset`, a `MosaicDataset` whose length is that of every pass; `num_train_epochs` works with it. Of an
        `IterableDataset`, another one, shuffled anew in every epoch; train it with `max_steps`.

    Raises:
        ValueError: If there is a budget and nothing tells how many tokens a row has, or the rows have no known form.

    Example:
        ```python
        trainer = SFTTrainer(model, args=SFTConfig(max_length=2000), train_dataset=mosaic(dataset, tokenizer))
        ```
    """
    config = config or MosaicConfig()
    counter = _counter(tokenizer, config, token_counts)
    if isinstance(dataset, IterableDataset):
        return _stream(dataset, counter, config, token_counts, buffer_size)
    made = MosaicDataset.of(_passes(dataset, counter, config, token_counts, num_proc))
    logger.info("Mosaics: %s.", made.report)
    return made


def build_mosaics(
    dataset: Dataset,
    tokenizer: Any = None,
    config: MosaicConfig | None = None,
    *,
    token_counts: Sequence[int] | str | None = None,
    num_proc: int | None = None,
    epoch: int = 0,
    progress: Progress | None = None,
) -> tuple[Dataset, MosaicReport]:
    """One pass as a `Dataset`: what `mosaic` yields in that epoch.

    Args:
        dataset: Rows, as in `mosaic`.
        tokenizer: As in `mosaic`.
        config: As in `mosaic`.
        token_counts: As in `mosaic`.
        num_proc: Processes that count tokens and write; the result does not depend on it.
        epoch: Which pass.
        progress: Told about rows counted and mosaics written.

    Returns:
        The examples and the books of the pass.

    Raises:
        ValueError: As in `mosaic`.
    """
    config = config or MosaicConfig()
    key = epoch_key(epoch)
    with _without_collector():
        passes = _passes(dataset, _counter(tokenizer, config, token_counts), config, token_counts, num_proc, progress)
        made = passes.dataset(key, num_proc=num_proc, progress=progress), passes.report(key)
        del passes  # or the collector would begin with a walk through all plans
        return made


def mosaic_file(
    source: str | Path,
    output: str | Path,
    tokenizer: Any = None,
    config: MosaicConfig | None = None,
    *,
    epoch: int = 0,
    num_proc: int | None = None,
    limit: int | None = None,
    split: str = "train",
    progress: Progress | None = None,
) -> tuple[MosaicReport, dict[str, str]]:
    """Read rows from a file, a folder or the Hub and write one pass of mosaics.

    Args:
        source: What `load_rows` reads; conversations keep their turns, and tables of this package their columns.
        output: A `.parquet` or `.jsonl` file; it appears when it is complete.
        tokenizer: As in `mosaic`.
        config: As in `mosaic`.
        epoch: Which pass.
        num_proc: As in `build_mosaics`.
        limit: Read at most this many rows.
        split: Which split of the source.
        progress: As in `build_mosaics`.

    Returns:
        The books of the pass, and place -> reason for every row that could not be read.

    Raises:
        ValueError: If the output is neither `.parquet` nor `.jsonl` or is the source, or as in `mosaic` and
            `load_rows`.
    """
    output = Path(output)
    check_output(output, source)
    loaded = read_turns(source, limit=limit, split=split)
    examples, report = build_mosaics(
        loaded.dataset, tokenizer, config, num_proc=num_proc, epoch=epoch, progress=progress
    )
    write_rows(examples, output)
    return report, loaded.dropped


def read_responses(example: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Take a mosaic apart: the answers that its text holds, in the order in which `order` claims them.

    Args:
        example: A row of a pass.

    Returns:
        One tuple per answered row, with its answers turn by turn. Answer i belongs to `sources[order[i] - 1]`.

    Raises:
        ValueError: If the text is not what the layout and the order claim.
    """
    turns = answers_of(example)
    if len(example["sources"]) == 1:
        return [tuple(turns)]
    layout = Layout(**example["layout"])
    split = [layout.split(text, example["order"]) for text in turns]
    if any(answers is None for answers in split):
        raise ValueError(f"The text of mosaic {example['id']} does not hold the answers {example['order']} it claims.")
    return list(zip(*(answers for answers in split if answers is not None), strict=True))


@contextmanager
def _without_collector() -> Iterator[None]:
    """Spare the garbage collector its walks through rows and plans, which hold no cycles: a tenth of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _counter(tokenizer: Any, config: MosaicConfig, token_counts: Sequence[int] | str | None) -> TokenCounter:
    if tokenizer is None and token_counts is None and config.max_tokens is not None:
        raise ValueError(
            f"max_tokens={config.max_tokens} needs to know how long rows are. Give the tokenizer, or token_counts, or "
            "MosaicConfig(max_tokens=None) for no limit."
        )
    return TokenCounter(tokenizer)


def _check_columns(columns: Sequence[str], config: MosaicConfig, token_counts: Sequence[int] | str | None) -> None:
    asked = {"keep_apart": config.keep_apart, "token_counts": token_counts if isinstance(token_counts, str) else None}
    for option, column in asked.items():
        if column is not None and column not in columns:
            raise ValueError(f"{option}={column!r} is no column of the rows; they have {sorted(columns)}.")


def _passes(
    dataset: Dataset,
    counter: TokenCounter,
    config: MosaicConfig,
    token_counts: Sequence[int] | str | None,
    num_proc: int | None,
    progress: Progress | None = None,
) -> MosaicPasses:
    """Count a dataset once."""
    if not len(dataset):
        raise ValueError("The dataset is empty, so there is nothing to join.")
    if dataset.format["type"] != "custom":
        dataset = dataset.with_format(None)  # NumPy's texts, for one, are no Python texts
    _check_columns(dataset.column_names, config, token_counts)
    form = RowForm(dataset[0], dataset.features)
    writer = load_writer(config, counter)
    given = dataset, form, counter, config, writer
    return MosaicPasses(*given, token_counts=token_counts, num_proc=num_proc, progress=progress)


def _stream(
    dataset: IterableDataset,
    counter: TokenCounter,
    config: MosaicConfig,
    token_counts: Sequence[int] | str | None,
    buffer_size: int,
) -> IterableDataset:
    """Join the rows of a stream, `buffer_size` at a time; the shuffle before it differs from epoch to epoch."""
    if token_counts is not None and not isinstance(token_counts, str):
        raise ValueError("The rows of an IterableDataset have no numbers. Give token_counts as the name of a column.")
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError("The dataset is empty, so there is nothing to join.")
    _check_columns(list(first), config, token_counts)
    window = MosaicWindow(RowForm(first, dataset.features), counter, config, token_counts)
    return dataset.shuffle(seed=config.seed, buffer_size=buffer_size).map(
        window,
        batched=True,
        batch_size=buffer_size,
        remove_columns=list(first),
        features=window.features_of({column: [value] for column, value in first.items()}),
    )
