"""Settings of SFTMix: those of `trl.SFTConfig` and five of its own.

A recipe line that differs from plain fine-tuning is, for example, `mixup_weight: 0.2`.
Source of the defaults: SFTMix, arXiv 2410.05248 (alpha 0.5, mu 0.2).
"""

from dataclasses import dataclass, field

from trl import SFTConfig


@dataclass
class SFTMixConfig(SFTConfig):
    """Configuration of `SFTMixTrainer`.

    Args:
        mixup_weight: Weight mu of the mixed loss beside the ordinary one. 0 turns SFTMix off wholly: the trainer is
            then `SFTTrainer`, bit for bit.
        mixup_alpha: Both parameters of the Beta distribution from which each pair's share lambda is drawn. Small
            values mostly keep one of the two, large values mix evenly.
        mixup_seed: Seed of pairs and shares; `data_seed`, or else `seed`, where absent.
        confidence_column: Column with the confidence of each row (see `lmmixup confidence`).
        confidence_threshold: Rows with at least this confidence are confident. The median of the training set where
            absent, which makes equal halves; a stream without a length needs a number.

    Raises:
        ValueError: If a value is outside its range, or an option of the host cannot be combined with mixing.
    """

    mixup_weight: float = field(
        default=0.2,
        metadata={"help": "Weight of the mixed loss (mu). 0 turns SFTMix off: the trainer is then SFTTrainer."},
    )
    mixup_alpha: float = field(
        default=0.5,
        metadata={"help": "Parameter of the Beta(alpha, alpha) distribution of each pair's share. Above 0."},
    )
    mixup_seed: int | None = field(
        default=None,
        metadata={"help": "Seed of the pairs and shares. Defaults to `data_seed`, then to `seed`."},
    )
    confidence_column: str = field(
        default="confidence",
        metadata={"help": "Column that holds the confidence of each row; rows without one train unmixed."},
    )
    confidence_threshold: float | None = field(
        default=None,
        metadata={"help": "Rows with at least this confidence count as confident. Defaults to the median."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mixup_weight < float("inf"):
            raise ValueError(f"mixup_weight={self.mixup_weight} must be a number of at least 0 (the paper's is 0.2).")
        if not 0 < self.mixup_alpha < float("inf"):
            raise ValueError(f"mixup_alpha={self.mixup_alpha} must be a number above 0 (the paper's is 0.5).")
        if self.mixup_seed is not None and self.mixup_seed < 0:
            raise ValueError(f"mixup_seed={self.mixup_seed} must be 0 or more.")
        if self.mixup_weight > 0:
            self._refuse_what_cannot_be_mixed()

    def _refuse_what_cannot_be_mixed(self) -> None:
        if self.packing or self.padding_free:
            name = "packing" if self.packing else "padding_free"
            raise ValueError(
                f"SFTMix mixes two rows position by position, and {name}=True joins the rows of a batch into one. "
                f"Set {name}=False, or mixup_weight=0 to train without mixing."
            )
        if self.per_device_train_batch_size % 2:
            raise ValueError(
                f"per_device_train_batch_size={self.per_device_train_batch_size} would tear pairs apart: SFTMix needs "
                "an even number. Use 2 and halve gradient_accumulation_steps to keep the size of a step."
            )
        if self.accelerator_config.split_batches:  # type: ignore[union-attr]
            raise ValueError(
                "accelerator_config: {split_batches: true} shares out the rows of a batch and would tear pairs apart. "
                "Leave it false: every process then has batches of per_device_train_batch_size."
            )
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} cannot be combined with SFTMix, which "
                "draws pairs at random. Leave it at 'random'."
            )
        if (self.liger_kernel_config or {}).get("fused_linear_cross_entropy"):
            raise ValueError(
                "Liger's fused_linear_cross_entropy replaces the forward pass whose hidden states SFTMix mixes. Leave "
                "it out of liger_kernel_config; Liger's other kernels work."
            )

    @property
    def seed_of_mixup(self) -> int:
        """The seed of pairs and shares."""
        chosen = [seed for seed in (self.mixup_seed, self.data_seed, self.seed) if seed is not None]
        return chosen[0]
