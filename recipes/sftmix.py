"""SFTMix from one YAML file: the reference run if there is no confidence table yet, then the training.

    python recipes/sftmix.py --config recipes/quickstart/sftmix.yaml
    accelerate launch recipes/sftmix.py --config recipes/qwen2.5-1.5b/sftmix.yaml

TRL has a script for plain fine-tuning and no hook for another trainer; this is that script for `SFTMixTrainer`. The
rows may be any instruction data, among them what `lmmixup run` distilled, and with `mosaic_items` above 1 they are
joined into mosaics whose parts lie in one half. With `dataset_streaming` the rows are read while the trainer runs.
Unknown keys and options are errors.

Hardware and a good run: see the recipe. Last run: 2026-11-21, recipes/quickstart/sftmix.yaml on a CPU; never on a GPU.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from hf_lmmixup.loading import detect_form, load_rows, normalize_rows
from hf_lmmixup.mosaic import mosaic
from hf_lmmixup.mosaic_config import MosaicConfig
from hf_lmmixup.sftmix import (
    SFTMixConfig,
    SFTMixTrainer,
    attach_confidence,
    load_confidence,
    record_confidence,
    save_confidence_plot,
)
from hf_lmmixup.sftmix.reference_run import as_conversation


logger = logging.getLogger(__name__)

SHARED = ("use_cpu", "bf16", "fp16", "dataloader_pin_memory")
"""What the reference run takes over: accelerate has one device and one precision for all trainers of a process."""


@dataclass
class SFTMixScriptArguments(ScriptArguments):
    """What the script needs besides the settings of trainer, model and data.

    `dataset_name` is a .jsonl, .json or .parquet file, a dataset folder or a Hub id; TRL's `datasets:` list works too.
    """

    limit: int | None = field(default=None, metadata={"help": "Read at most this many rows."})
    confidence: str | None = field(
        default=None,
        metadata={
            "help": "Confidence table (`lmmixup confidence`). Defaults to confidence.parquet in the output folder, "
            "which the reference run writes if it is not there."
        },
    )
    reference_model: str | None = field(
        default=None, metadata={"help": "Model of the reference run, may be a weaker one. Defaults to the model."}
    )
    reference_epochs: float = field(default=3.0, metadata={"help": "Epochs of the reference run."})
    reference_checkpoints: int = field(default=3, metadata={"help": "How often the reference model is asked."})
    reference_online: bool = field(
        default=False, metadata={"help": "Take confidences from the reference run's training passes: no extra pass."}
    )
    reference_lora_rank: int = field(
        default=0, metadata={"help": "Rank of a LoRA adapter in the reference run; 0 trains all weights."}
    )
    mosaic_items: int = field(
        default=1, metadata={"help": "Most rows in a mosaic (Mosaic-IT); 1 trains on the rows themselves."}
    )


def make_parser() -> TrlParser:
    """The parser of this script; `parse_args_and_config()` refuses what it does not know."""
    return TrlParser((SFTMixScriptArguments, SFTMixConfig, ModelConfig, DatasetMixtureConfig))


def read_rows(script: SFTMixScriptArguments, mixture: DatasetMixtureConfig) -> Dataset:
    """The rows with their ids, from one source or from TRL's list of datasets."""
    if mixture.datasets:
        rows = enumerate(get_dataset(mixture)[script.dataset_train_split], start=1)
        outcome = normalize_rows(((f"datasets:{n}", row) for n, row in rows), name="datasets", limit=script.limit)
    elif script.dataset_name:
        outcome = load_rows(script.dataset_name, limit=script.limit, split=script.dataset_train_split)
    else:
        raise ValueError("Name the data: `dataset_name` or a list of `datasets`.")
    if outcome.dropped:
        logger.warning("%d rows cannot be used: %s", len(outcome.dropped), sorted(set(outcome.dropped.values())))
    return outcome.dataset


def stream_rows(script: SFTMixScriptArguments, training: SFTMixConfig) -> IterableDataset:
    """The rows as a stream, which has no reference run: to be mixed they need their confidences with them."""
    if not script.dataset_name:
        raise ValueError("Name the data: a stream is read from `dataset_name`, a folder or a Hub id.")
    rows = load_dataset(script.dataset_name, script.dataset_config, split=script.dataset_train_split, streaming=True)
    first = next(iter(rows), {})
    if detect_form(first, script.dataset_name) == "Alpaca":
        rows = rows.map(
            _as_pair, remove_columns=[name for name in ("instruction", "input", "output") if name in first]
        )
    if training.mixup_weight and training.confidence_column not in first:
        raise ValueError(
            f"A stream is mixed by its column {training.confidence_column!r}, which these rows lack. Write it with "
            "`lmmixup confidence --rows ROWS.parquet`, or set mixup_weight: 0."
        )
    return rows if script.limit is None else rows.take(script.limit)


def _as_pair(row: dict[str, Any]) -> dict[str, str]:
    context = row.get("input")
    return {
        "prompt": f"{row['instruction']}\n\n{context}" if context else row["instruction"],
        "completion": row["output"],
    }


def with_confidence(
    rows: Dataset, script: SFTMixScriptArguments, training: SFTMixConfig, model: ModelConfig
) -> Dataset:
    """The rows joined with the confidence table, which is made first if there is none."""
    path = Path(script.confidence or f"{training.output_dir}/confidence.parquet")
    if path.is_file() or script.confidence:
        return attach_confidence(rows, load_confidence(path), column=training.confidence_column)
    table = record_confidence(
        rows,
        script.reference_model or model.model_name_or_path,
        path,
        checkpoints=script.reference_checkpoints,
        online=script.reference_online,
        epochs=script.reference_epochs,
        batch_size=training.per_device_train_batch_size,
        max_length=training.max_length or 1024,
        lora_rank=script.reference_lora_rank,
        seed=training.seed,
        run_directory=f"{training.output_dir}/reference",
        **{name: getattr(training, name) for name in SHARED},
    )
    save_confidence_plot(table["confidence"], path.with_suffix(".svg"))
    return attach_confidence(rows, table, column=training.confidence_column)


def training_set(
    rows: Dataset | IterableDataset,
    script: SFTMixScriptArguments,
    training: SFTMixConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> Any:
    """The rows as conversations, or mosaics of them, another pass in every epoch."""
    known_median = script.mosaic_items > 1 and training.mixup_weight and isinstance(rows, Dataset)
    if known_median and training.confidence_threshold is None:
        known = np.array(rows[training.confidence_column][:], dtype=np.float64)  # None becomes NaN
        training.confidence_threshold = float(np.nanmedian(known))
    rows = as_conversation(rows, tokenizer)
    if script.mosaic_items <= 1:
        return rows
    config = MosaicConfig(
        max_items=script.mosaic_items,
        max_tokens=training.max_length,
        seed=training.seed,
        keep_apart=training.confidence_column if training.mixup_weight else None,
    )
    return mosaic(rows, tokenizer, config)


def main(
    script: SFTMixScriptArguments, training: SFTMixConfig, model: ModelConfig, mixture: DatasetMixtureConfig
) -> None:
    """Confidence, then training, then the model in the output folder."""
    if training.hub_token:
        raise ValueError("hub_token would be stored in every checkpoint. Remove it and set HF_TOKEN instead.")
    if training.eval_strategy != "no":
        raise ValueError(f"eval_strategy={training.eval_strategy.value!r}: this script trains and evaluates nothing.")
    tokenizer = AutoTokenizer.from_pretrained(
        model.model_name_or_path, revision=model.model_revision, trust_remote_code=training.trust_remote_code
    )
    rows: Dataset | IterableDataset
    if script.dataset_streaming:
        rows = stream_rows(script, training)
    elif training.mixup_weight:
        rows = with_confidence(read_rows(script, mixture), script, training, model)
    else:
        rows = read_rows(script, mixture)
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    } | (training.model_init_kwargs or {})
    if training.push_to_hub and training.hub_private_repo is None:
        training.hub_private_repo = True
    trainer = SFTMixTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=training_set(rows, script, training, tokenizer),
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)
    trainer.accelerator.print(f"Model saved to {training.output_dir}.")
    if training.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
