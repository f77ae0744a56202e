"""SFTMix inside TRL's supervised trainer: one forward pass, one more loss.

Every batch holds pairs of a confident and an unconfident row. While the model runs forward once for the ordinary
next-token loss, a hook on its backbone takes the last hidden states of both responses, mixes them position by position
and scores the mixtures against both targets (SFTMix, arXiv 2410.05248)::

    loss = NTP + mu * (lambda * CE(z, y_c) + (1 - lambda) * CE(z, y_u)),   z = lambda*h_c + (1-lambda)*h_u

Both sums are divided by the same number: the tokens with loss of the whole optimizer step, over all micro-batches and
processes, as TRL counts them. Hence neither gradient accumulation nor the number of processes changes the result. The
paper does not say how it averages; with sums over one common denominator the two terms keep the proportion that the
paper's formula gives them, and a pair counts by the length of its shorter response.

One row of the training data: `{"id": "5f1d0c8f1f0b7a52", "prompt": "why sky blue", "completion": "scattering",
"confidence": -13.57}`.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import SFTTrainer

from hf_lmmixup.sftmix.confidence import CONFIDENT, UNCONFIDENT, split_by_confidence
from hf_lmmixup.sftmix.mixed_loss import logit_transform, mixed_cross_entropy
from hf_lmmixup.sftmix.pair_stream import HALF, ROW, PairStream, check_column, half_of, median_of
from hf_lmmixup.sftmix.pairing import (
    IGNORED,
    MixedPositions,
    PairSampler,
    draw_mixture,
    mix_hidden_states,
    mixed_positions,
    pairs_in_batch,
)
from hf_lmmixup.sftmix.response_nll import keep_weights_unpacked
from hf_lmmixup.sftmix.sftmix_config import SFTMixConfig


logger = logging.getLogger(__name__)


class RowCollator:
    """Another collator's batch with the numbers and halves of its rows beside it.

    Args:
        inner: The collator that builds the batch.
    """

    def __init__(self, inner: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Build one batch."""
        kept = [{name: value for name, value in example.items() if name not in (ROW, HALF)} for example in examples]
        batch = self.inner(kept)
        if all(ROW in example for example in examples):
            batch |= {name: torch.tensor([example[name] for example in examples]) for name in (ROW, HALF)}
        return batch


class SFTMixTrainer(SFTTrainer):
    """`trl.SFTTrainer` with the SFTMix loss.

    Takes the arguments of `SFTTrainer`; `args` is an `SFTMixConfig` and the training set has a column of confidences
    (`args.confidence_column`). It may be a stream whose rows have one, such as `mosaic(...)` with `keep_apart` set to
    that column. Logs `ntp_loss`, `mixup_loss` (before its weight, so `loss = ntp_loss + mixup_weight * mixup_loss`)
    and `mixup_share`, the share of response tokens that took part. Evaluation is not mixed.

    Raises:
        ValueError: If the confidences are missing, fewer than two are known, or the model or data cannot be mixed.
    """

    _tag_names = ["trl", "sft", "sftmix", "hf-lmmixup"]
    _name = "SFTMix"
    _paper = {"title": "SFTMix: Elevating Language Model Instruction Tuning with Mixup Recipe", "id": "2410.05248"}

    args: SFTMixConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._positions: MixedPositions | None = None
        self._mixed_sum: Tensor | None = None
        self._parts: Tensor | float = 0.0
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, SFTMixConfig):
            raise ValueError(f"SFTMixTrainer needs an SFTMixConfig as `args`, got {type(self.args).__name__}.")
        if self.args.mixup_weight == 0:
            return
        self._refuse_what_cannot_be_mixed()
        self.train_dataset = self._marked(self.train_dataset)
        self.data_collator = RowCollator(self.data_collator)
        keep_weights_unpacked(self.model)  # type: ignore[arg-type]
        causal_lm = _causal_lm(self.model)
        self._logit_scale, self._logit_softcap = logit_transform(causal_lm.config.get_text_config())
        backbone: nn.Module = causal_lm.base_model
        backbone.register_forward_hook(self._mix)

    def _refuse_what_cannot_be_mixed(self) -> None:
        if self._is_vision_dataset:
            raise ValueError("SFTMix mixes text rows; this dataset has images. Use trl.SFTTrainer for it.")
        if is_deepspeed_zero3_enabled():
            raise ValueError("SFTMix reads the whole head, which DeepSpeed ZeRO-3 has sharded. Use ZeRO-2 or FSDP2.")
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise ValueError(
                "SFTMix mixes two rows position by position, and context and sequence parallelism spread the "
                "positions of a row over processes. Set cp_size and sp_size to 1."
            )
        adapters = getattr(self.model, "peft_config", {})
        for name, config in adapters.items():
            if getattr(config, "is_prompt_learning", False):
                raise ValueError(
                    f"The PEFT adapter {name!r} ({config.peft_type}) puts virtual tokens before every row, so hidden "
                    "states and labels have different lengths. Use LoRA with SFTMix."
                )

    def _marked(self, dataset: Any) -> Any:
        """The training set with the number and the half of every row."""
        column, threshold = self.args.confidence_column, self.args.confidence_threshold
        if not isinstance(dataset, Dataset):
            if threshold is None and not hasattr(dataset, "__len__"):
                raise ValueError(
                    "A stream has no median. Set confidence_threshold to the confidence from which a row counts as "
                    "confident, for example the median of the confidence table."
                )
            check_column(next(iter(dataset), {}), column)
            cut = median_of(dataset, column) if threshold is None else threshold
            return PairStream(dataset, column, cut, self.args.seed_of_mixup)
        if column not in dataset.column_names:
            raise ValueError(
                f"The training set has no column {column!r}; it has {dataset.column_names}. Measure it with `lmmixup "
                "confidence` and join it with `attach_confidence`, or name another column in `confidence_column`."
            )
        values = dataset[column][:]
        if threshold is None:
            self.halves = split_by_confidence(values, dataset["id"][:] if "id" in dataset.column_names else None)
        else:
            self.halves = np.array([half_of(value, threshold) for value in values], dtype=np.int8)
        pairs = min(int((self.halves == half).sum()) for half in (CONFIDENT, UNCONFIDENT))
        if not pairs:
            known = sum(value is not None for value in values)
            raise ValueError(
                f"There is no pair to mix: {known} of {len(dataset)} rows have a confidence in {column!r}, and "
                f"{int((self.halves == CONFIDENT).sum())} of them count as confident."
            )
        logger.info("SFTMix: %d pairs of rows, %d rows unpaired.", pairs, len(dataset) - 2 * pairs)
        return dataset.add_column(ROW, np.arange(len(dataset))).add_column(HALF, self.halves)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if ROW not in columns:
            self._signature_columns = [*columns, ROW, HALF]  # type: ignore[assignment]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        if self.args.mixup_weight == 0 or not isinstance(self.train_dataset, Dataset):
            return super()._get_train_sampler(train_dataset)
        if self._train_batch_size % 2:
            raise ValueError(
                f"A batch of {self._train_batch_size} rows cannot hold whole pairs; SFTMix needs an even size."
            )
        return PairSampler(self.halves, self.args.seed_of_mixup, lambda: int(self.state.epoch or 0))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """NTP loss of `SFTTrainer` plus `mixup_weight` times the mixed loss over the same number of tokens."""
        rows, halves = inputs.pop(ROW, None), inputs.pop(HALF, None)
        if rows is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        self._positions, self._mixed_sum = self._plan(rows.tolist(), halves.tolist(), labels), None
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        ntp = result[0] if return_outputs else result
        tokens = (labels[:, 1:] != IGNORED).sum()
        mixed = self._scaled(self._mixed_sum, tokens, num_items_in_batch, ntp)
        # Losses over `num_items_in_batch` add up to that of the step; without it, `Trainer` takes their mean.
        parts = 1 if num_items_in_batch is not None else getattr(self, "current_gradient_accumulation_steps", 1)
        self._note(ntp.detach() / parts, mixed.detach() / parts, tokens, 2 * len(self._positions.targets))
        self._positions = self._mixed_sum = None
        loss = ntp + self.args.mixup_weight * mixed
        return (loss, result[1]) if return_outputs else loss

    def _plan(self, rows: list[int], halves: list[int], labels: Tensor) -> MixedPositions:
        places = pairs_in_batch(halves)
        pairs = [(rows[confident], rows[unconfident]) for confident, unconfident in places]
        mixture = draw_mixture(self.args.mixup_alpha, self.args.seed_of_mixup, self.state.global_step, pairs)
        return mixed_positions(labels, places, mixture)

    def _mix(self, backbone: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook. It runs inside the model's own forward, where wrappers have gathered sharded weights."""
        positions = self._positions
        if positions is None or self._mixed_sum is not None or not torch.is_grad_enabled():
            return
        head = _causal_lm(self.model).get_output_embeddings()
        hidden = output.last_hidden_state.to(head.weight.device)
        self._mixed_sum = mixed_cross_entropy(
            mix_hidden_states(hidden, positions),
            _whole(head.weight),
            _whole(getattr(head, "bias", None)),
            positions.targets.to(hidden.device),
            positions.shares.to(hidden.device),
            scale=self._logit_scale,
            softcap=self._logit_softcap,
        )

    def _scaled(self, mixed: Tensor | None, tokens: Tensor, items: Tensor | int | None, ntp: Tensor) -> Tensor:
        if mixed is None:
            raise RuntimeError(
                "The model's forward pass did not run its backbone as a module, so SFTMix saw no hidden states. Use "
                "an architecture of transformers, or train with mixup_weight=0."
            )
        count = torch.as_tensor(tokens if items is None else items).to(ntp.device).clamp(min=1)
        scaled = mixed.to(ntp.device) / count
        if self.args.average_tokens_across_devices and items is not None:
            # As TRL does for its own loss: `items` counts all processes, and DDP averages their gradients.
            scaled = scaled * (self.accelerator.num_processes // self.get_tp_size())
        return scaled

    def _note(self, ntp: Tensor, mixed: Tensor, tokens: Tensor, taken: int) -> None:
        """Add a micro-batch to its optimizer step, which is logged when it is whole."""
        self._parts = self._parts + torch.stack([ntp, mixed, tokens.to(ntp), tokens.new_tensor(taken).to(ntp)])
        if not self.accelerator.sync_gradients:
            return
        mean_ntp, mean_mixed, mean_tokens, mean_taken = self.accelerator.gather(self._parts[None]).mean(0).tolist()
        self._parts = 0.0
        metrics = self._metrics["train"]
        metrics["ntp_loss"].append(mean_ntp)
        metrics["mixup_loss"].append(mean_mixed)
        metrics["mixup_share"].append(mean_taken / mean_tokens if mean_tokens else 0.0)


def _causal_lm(model: Any) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _whole(tensor: Any) -> Any:
    """FSDP2 leaves a head that it wraps by itself as a sharded DTensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
