# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-lmmixup[qlora]"]
# ///
"""QLoRA fine-tuning on MIXTURE or on any distilled dataset, with an evaluation before and after.

    python recipes/qlora.py --config recipes/qwen2.5-1.5b/sft_qlora.yaml --merge_to models/qwen2.5-1.5b-sft
    uv run recipes/qlora.py --config recipes/downstream/qwen2.5-1.5b_qlora.yaml --dataset_name ada/pile-distilled
    accelerate launch recipes/qlora.py --config recipes/downstream/qwen2.5-1.5b_qlora.yaml
    hf jobs uv run --flavor a10g-small --secrets HF_TOKEN recipes/qlora.py --model_name_or_path Qwen/Qwen2.5-1.5B \
        --dataset_name ada/pile-distilled --output_dir out --push_to ada/pile-qwen

TRL's SFTTrainer does the training, unmodified; this script adds what `trl sft` lacks. Rows of plain text become turns
of the chat template; the loss on held-out rows is measured before and after; the adapter is saved, merged where asked,
and pushed with a card, privately. It runs on CUDA and, slowly, on a CPU. Without a recipe the model is loaded in 4
bits (NF4, double quantization) with LoRA on all linear layers. Unknown keys and options are errors.

Hardware: that of the recipe; without one, for 1.5B, a GPU with 8 GB of memory (estimated).
Good run: the loss on held-out rows is lower after the training than before.
Last run: 2026-11-21, two steps with a tiny model on a CPU, by `python`, by `uv run`, and by `accelerate launch` as one
process and as two; never on a GPU, and as a job only by `hf jobs uv run --dry-run`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from hf_lmmixup.cards import is_repo_id
from hf_lmmixup.four_bit import keep_layout, merge_adapter
from hf_lmmixup.hub import push_distiller
from hf_lmmixup.loading import load_rows
from hf_lmmixup.sftmix.reference_run import as_conversation


@dataclass
class QLoRAScriptArguments(ScriptArguments):
    """What the script needs besides the settings of trainer, model and data.

    `dataset_name` is `mixture` (with `dataset_config: sft`), a .jsonl, .json or .parquet file, a dataset folder such
    as `runs/pile/dataset`, or a Hub id; TRL's `datasets:` list works too.
    """

    eval_rows: int = field(
        default=64, metadata={"help": "Rows held out for the evaluation where the dataset has no test split; 0: none."}
    )
    merge_to: str | None = field(default=None, metadata={"help": "Folder for the merged model; none by default."})
    push_to: str | None = field(
        default=None,
        metadata={"help": "Repository OWNER/NAME for the merged model, or the adapter if none was merged."},
    )
    public: bool = field(default=False, metadata={"help": "Let anybody read the repository."})


@dataclass
class QLoRAModelConfig(ModelConfig):
    """TRL's settings of a model with the defaults of QLoRA (arXiv 2305.14314)."""

    load_in_4bit: bool = field(default=True, metadata={"help": "Whether the base model is loaded in 4 bits."})
    use_bnb_nested_quant: bool = field(default=True, metadata={"help": "Whether the scales are quantized too."})
    use_peft: bool = field(default=True, metadata={"help": "Whether an adapter is trained, not all weights."})
    lora_target_modules: list[str] | None = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Layers that get an adapter."}
    )


def make_parser() -> TrlParser:
    """The parser of this script; `parse_args_and_config()` refuses what it does not know."""
    return TrlParser((QLoRAScriptArguments, SFTConfig, QLoRAModelConfig, DatasetMixtureConfig))


def read_splits(
    script: QLoRAScriptArguments, training: SFTConfig, mixture: DatasetMixtureConfig
) -> tuple[Dataset, Dataset | None]:
    """Rows to train on and rows to evaluate on; the latter are drawn from the former where there is no test split."""
    if mixture.datasets:
        splits = get_dataset(mixture)
    elif script.dataset_name is None:
        raise ValueError("Name the data: `dataset_name` or a list of `datasets`.")
    elif Path(script.dataset_name).is_file():
        splits = DatasetDict({script.dataset_train_split: load_rows(script.dataset_name).dataset})
    else:
        splits = load_dataset(script.dataset_name, name=script.dataset_config)
    rows = splits[script.dataset_train_split]
    if script.eval_rows == 0:
        return rows, None
    if script.dataset_test_split in splits:
        return rows, splits[script.dataset_test_split]
    if len(rows) <= script.eval_rows:
        raise ValueError(f"There are {len(rows)} rows, so eval_rows={script.eval_rows} leaves none to train on.")
    parts = rows.train_test_split(test_size=script.eval_rows, seed=training.seed)
    return parts["train"], parts["test"]


def build_trainer(
    script: QLoRAScriptArguments, training: SFTConfig, model: QLoRAModelConfig, mixture: DatasetMixtureConfig
) -> SFTTrainer:
    """TRL's trainer with a quantized model that may be evaluated at any time."""
    from transformers import AutoTokenizer

    if training.push_to_hub or training.hub_token:
        raise ValueError("push_to_hub and hub_token do not belong here: give push_to=OWNER/NAME and set HF_TOKEN.")
    tokenizer = AutoTokenizer.from_pretrained(
        model.model_name_or_path, revision=model.model_revision, trust_remote_code=training.trust_remote_code
    )
    rows, held_out = read_splits(script, training, mixture)
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    } | (training.model_init_kwargs or {})
    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=as_conversation(rows, tokenizer),
        eval_dataset=None if held_out is None else as_conversation(held_out, tokenizer),
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    keep_layout(trainer.model)
    return trainer


def train(trainer: SFTTrainer) -> dict[str, Any]:
    """Evaluate, train, evaluate again, save; the losses go to `evaluation.json` beside the weights."""
    losses = {"before": evaluate(trainer)}
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    losses["after"] = evaluate(trainer)
    trainer.save_model(trainer.args.output_dir)
    if trainer.is_world_process_zero():
        path = Path(trainer.args.output_dir) / "evaluation.json"
        path.write_text(json.dumps(losses, indent=2) + "\n", encoding="utf-8")
    return losses


def evaluate(trainer: SFTTrainer) -> dict[str, float]:
    """Loss and token accuracy on the held-out rows; empty if there are none."""
    if trainer.eval_dataset is None:
        return {}
    found = trainer.evaluate()
    return {name: found[name] for name in ("eval_loss", "eval_mean_token_accuracy") if name in found}


def main(
    script: QLoRAScriptArguments, training: SFTConfig, model: QLoRAModelConfig, mixture: DatasetMixtureConfig
) -> None:
    """Train, then merge and push where asked."""
    trainer = build_trainer(script, training, model, mixture)
    losses = train(trainer)
    say = trainer.accelerator.print
    say(
        f"Loss on held-out rows: {losses['before'].get('eval_loss')} before, {losses['after'].get('eval_loss')} after."
    )
    say(f"Adapter saved to {training.output_dir}.")
    if not trainer.is_world_process_zero():
        return
    weights = training.output_dir
    if script.merge_to is not None:
        weights = str(
            merge_adapter(
                training.output_dir,
                model.model_name_or_path,
                script.merge_to,
                quantization_config=get_quantization_config(model),
                dtype=model.dtype if model.dtype != "auto" else "bfloat16",
            )
        )
        say(f"Merged model saved to {weights}.")
    if script.push_to is not None:
        name = model.model_name_or_path
        base = name if is_repo_id(name) and not Path(name).exists() else None
        pushed = push_distiller(weights, script.push_to, public=script.public, base_model=base)
        say(f"Pushed to {pushed.url}, {'private' if pushed.private else 'public'}.")


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
