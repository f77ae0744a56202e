"""The negative log-likelihood of every response: from a training pass that happens anyway, or from passes of its own.

A training batch does not say which rows it holds, so a row is recognized by its content: a hash of its tokens and of
the mask of its response. This works with any collator and with padding-free batches.

One row as it is handed on: `("5f1d0c8f1f0b7a52", 31.5, 11)`: id, sum of -log p over the response in nats, tokens.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from trl import SFTTrainer

from hf_lmmixup.sftmix.pairing import IGNORED


Scored = tuple[str, float, int]
"""Row id (or row key), summed negative log-likelihood in nats, number of response tokens."""


def row_key(input_ids: Sequence[int], labels: Sequence[int]) -> str:
    """Content hash of a tokenized row. The first label never matters: nothing predicts the first token."""
    loss_mask = bytes(label != IGNORED for label in labels[1:])
    digest = hashlib.blake2b(torch.tensor(input_ids, dtype=torch.int64).numpy().tobytes(), digest_size=16)
    digest.update(loss_mask)
    return digest.hexdigest()


def rows_of_batch(inputs: dict[str, Any], log_probs: Tensor) -> Iterator[Scored]:
    """Take a batch apart into rows, keyed by `row_key`.

    Args:
        inputs: What the model was called with: `input_ids` and `labels` (b, t), and `attention_mask` (b, t) or, for a
            padding-free batch of one long row, `cu_seq_lens_q`.
        log_probs: (b, t - 1) log-probability of every next token, zero where there is no loss.

    Yields:
        Key, sum and count of each row that has response tokens.
    """
    ids, labels, scores = inputs["input_ids"].cpu(), inputs["labels"].cpu(), log_probs.detach().float().cpu()
    for row, start, stop in _row_bounds(inputs):
        row_labels = labels[row, start:stop].tolist()
        tokens = sum(label != IGNORED for label in row_labels[1:])
        if tokens:
            nll = -float(scores[row, start : stop - 1].sum())
            yield row_key(ids[row, start:stop].tolist(), row_labels), nll, tokens


def _row_bounds(inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
    if inputs.get("cu_seq_lens_q") is not None:
        bounds = inputs["cu_seq_lens_q"].tolist()
        return [(0, start, stop) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    mask = inputs["attention_mask"].cpu()
    starts, counts = mask.argmax(1).tolist(), mask.sum(1).tolist()
    return [(row, start, start + count) for row, (start, count) in enumerate(zip(starts, counts, strict=True))]


def score_responses(trainer: SFTTrainer, batch_size: int) -> Iterator[tuple[int, float, int]]:
    """One evaluation pass over this process's share of the training set, longest rows first.

    Args:
        trainer: Holds the model, the collator and the tokenized training set.
        batch_size: Rows per batch.

    Yields:
        Row number, summed negative log-likelihood (float32 sums) and number of response tokens.
    """
    model: Any = trainer.model
    dataset: Any = trainer.train_dataset
    rows = dataset.select_columns(["input_ids", "labels"])
    was_training = model.training
    model.eval()
    keep_weights_unpacked(model)
    hidden = trainer.args.disable_tqdm or not trainer.is_local_process_zero()
    try:
        for numbers in tqdm(_shares(rows, batch_size, trainer), desc="Confidence", disable=hidden, leave=False):
            batch = trainer._prepare_inputs(trainer.data_collator([rows[number] for number in numbers]))
            with torch.no_grad(), trainer.accelerator.autocast():
                scores = model(**batch, use_cache=False, fused_lm_head=True)
            yield from _sums(numbers, batch, scores.log_probs.float(), scores.label_mask)
    finally:
        model.train(was_training)


def _shares(rows: Iterable[dict], batch_size: int, trainer: SFTTrainer) -> list[list[int]]:
    lengths = [len(row["input_ids"]) for row in rows]
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return batches[trainer.args.process_index :: trainer.args.world_size]


def _sums(numbers: list[int], batch: dict, log_probs: Tensor, mask: Tensor) -> Iterator[tuple[int, float, int]]:
    if batch.get("cu_seq_lens_q") is not None:
        owner = torch.repeat_interleave(
            torch.arange(len(numbers), device=mask.device), batch["cu_seq_lens_q"].diff().to(mask.device)
        )[:-1]
        nll = log_probs.new_zeros(len(numbers)).index_add_(0, owner, -log_probs[0])
        tokens = log_probs.new_zeros(len(numbers)).index_add_(0, owner, mask[0].to(log_probs.dtype))
    else:
        nll, tokens = -log_probs.sum(1), mask.sum(1)
    yield from zip(numbers, nll.tolist(), [int(count) for count in tokens.tolist()], strict=True)


def keep_weights_unpacked(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in evaluation mode on processors with AVX512-BF16.

    Nothing unpacks them again, and the training steps that follow crash or have wrong gradients (bitsandbytes 0.50).
    """
    switch = "support_avx512bf16_for_cpu"
    for module in model.modules():
        if hasattr(module, switch):
            setattr(module, switch, False)
