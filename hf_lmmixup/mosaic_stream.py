"""Mosaics as a `datasets.IterableDataset` that makes a new pass in every epoch and knows its length.

`SFTTrainer` takes it like any streaming dataset and maps its tokenizer over it lazily; `set_epoch`, which the trainer
calls, reaches the passes through the hook that `datasets` has for reshuffling. Because the length is known and
survives `map`, `num_train_epochs` works and `max_steps` is not needed. One row is an example of `mosaic_passes`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import DatasetInfo, Features, IterableDataset
from datasets.iterable_dataset import ExamplesIterable

from hf_lmmixup.mosaic_config import MosaicConfig
from hf_lmmixup.mosaic_passes import MosaicPasses, MosaicReport, columns_of, load_writer
from hf_lmmixup.mosaic_rows import RowForm
from hf_lmmixup.mosaic_tokens import TokenCounter


def epoch_key(epoch: int) -> int:
    """The key of the pass that an epoch sees: 0 for the first one, else a number from the epoch's generator."""
    return _draw(np.random.default_rng(epoch)) if epoch else 0


class MosaicExamples(ExamplesIterable):
    """One pass as `datasets` iterates over it. It is one shard: several processes each read it and take turns.

    Args:
        passes: All passes.
        key: Which one this is.
    """

    def __init__(self, passes: MosaicPasses, key: int) -> None:
        super().__init__(_generate, {"passes": passes, "key": key})
        self.passes, self.key = passes, key

    def shuffle_data_sources(self, generator: np.random.Generator) -> "MosaicExamples":
        """Another pass; `datasets` calls this for every epoch but the first, with the epoch's generator."""
        return MosaicExamples(self.passes, self.key ^ _draw(generator))

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> "MosaicExamples":
        """The one shard there is."""
        if index:
            raise IndexError(f"Mosaics are one shard, so there is no shard {index} of {num_shards}.")
        return self

    def reshard_data_sources(self) -> "MosaicExamples":
        """There is nothing to split."""
        return self


class MosaicDataset(IterableDataset):
    """An `IterableDataset` of mosaics with a length. Made by `mosaic`.

    `map`, `filter`, `shuffle` and the selection of columns keep the length. A filter that drops examples ends the
    epoch early. Everything that changes the number of examples on purpose (`batch`, `take`, packing) returns a plain
    `IterableDataset`.

    Attributes:
        report: The books of the first pass; those of later ones differ slightly.
    """

    report: MosaicReport
    _length: int

    @classmethod
    def of(cls, passes: MosaicPasses) -> "MosaicDataset":
        """All passes, the first one first."""
        dataset = cls(MosaicExamples(passes, 0), info=DatasetInfo(features=passes.features))
        dataset.report, dataset._length = passes.report(), len(passes)
        return dataset

    def __len__(self) -> int:
        return self._length

    def map(self, *args: Any, **kwargs: Any) -> IterableDataset:
        """See `IterableDataset.map`; a batched map may change the number of examples, so it loses the length."""
        mapped = super().map(*args, **kwargs)
        return mapped if kwargs.get("batched") else self._sized(mapped)

    def filter(self, *args: Any, **kwargs: Any) -> IterableDataset:
        """See `IterableDataset.filter`."""
        return self._sized(super().filter(*args, **kwargs))

    def shuffle(self, *args: Any, **kwargs: Any) -> IterableDataset:
        """See `IterableDataset.shuffle`."""
        return self._sized(super().shuffle(*args, **kwargs))

    def select_columns(self, *args: Any, **kwargs: Any) -> IterableDataset:
        """See `IterableDataset.select_columns`."""
        return self._sized(super().select_columns(*args, **kwargs))

    def remove_columns(self, *args: Any, **kwargs: Any) -> IterableDataset:
        """See `IterableDataset.remove_columns`."""
        return self._sized(super().remove_columns(*args, **kwargs))

    def _sized(self, dataset: IterableDataset) -> IterableDataset:
        dataset.__class__ = type(self)
        dataset.report, dataset._length = self.report, self._length
        return dataset


class MosaicWindow:
    """Joins the rows of one batch of a stream; a function for `IterableDataset.map`.

    The seed of a batch comes from its rows and their order, so it needs no number of the batch or the epoch.

    Args:
        form: Form of the rows.
        counter: Counts tokens.
        config: The settings.
        token_counts: Column that holds the tokens, instead.
    """

    def __init__(self, form: RowForm, counter: TokenCounter, config: MosaicConfig, token_counts: str | None) -> None:
        self.form, self.counter, self.config, self.token_counts = form, counter, config, token_counts
        self.writer = load_writer(config, counter)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """The examples of one batch."""
        passes = self._passes(batch)
        order = ",".join(passes.reader.take(range(len(passes.reader)))[1])
        key = int.from_bytes(hashlib.sha256(order.encode()).digest()[:7], "big")
        examples = list(passes.examples(passes.planner.plan(passes.generator(key))))
        return columns_of(examples, passes.features)

    def features_of(self, batch: Mapping[str, Sequence[Any]]) -> Features:
        """Columns of the examples."""
        return self._passes(batch).features

    def _passes(self, batch: Mapping[str, Sequence[Any]]) -> MosaicPasses:
        given = batch, self.form, self.counter, self.config, self.writer
        return MosaicPasses(*given, token_counts=self.token_counts)


def _generate(passes: MosaicPasses, key: int) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from enumerate(passes.examples(passes.plans(key)))


def _draw(generator: np.random.Generator) -> int:
    return int(generator.integers(1, 2**62))
