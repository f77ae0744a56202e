"""The reference run: train a model once on the rows and record how sure it is of each, or score saved checkpoints.

The reference may be the model to be trained later, or a smaller one: a weaker reference worked in the paper
(Gemma-2B for Llama-8B; SFTMix, arXiv 2410.05248). The result is one confidence table, `confidence.parquet`::

    {"id": "5f1d0c8f1f0b7a52", "checkpoints": [4, 8, 12], ..., "confidence": -13.57}
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from hf_lmmixup.records import Progress
from hf_lmmixup.run_directory import read_json, write_json
from hf_lmmixup.sftmix.confidence import ConfidenceRecord
from hf_lmmixup.sftmix.confidence_callback import DEFAULT_CHECKPOINTS, ConfidenceCallback


CLAIM = "reference.json"
"""Says in a run directory what its checkpoints were made from."""

LEARNING_RATE, LORA_LEARNING_RATE = 2e-5, 2e-4
"""TRL's default for full fine-tuning, and ten times as much for LoRA, as its guide advises."""


class _Told(TrainerCallback):
    """Tells the steps of a run to a progress bar."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress("reference run", state.global_step, state.max_steps)


def as_conversation(dataset: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Text prompts and completions as one user and one assistant turn, if the tokenizer has a chat template.

    Rows that hold messages already, and base models without a template, stay as they are.
    """
    first: dict[str, Any] = next(iter(dataset), {})
    if not isinstance(first.get("prompt"), str) or tokenizer.chat_template is None:
        return dataset
    shown = {"desc": "Texts to turns"} if isinstance(dataset, Dataset) else {}
    return dataset.map(_as_turns, batched=True, **shown)


def _as_turns(rows: dict[str, list]) -> dict[str, list]:
    turns = {"prompt": "user", "completion": "assistant"}
    return {
        column: [[{"role": role, "content": content}] for content in rows[column]] for column, role in turns.items()
    }


def record_confidence(
    dataset: Dataset,
    reference: str | Path,
    output: str | Path,
    *,
    checkpoints: int = DEFAULT_CHECKPOINTS,
    online: bool = False,
    epochs: float = 3.0,
    learning_rate: float | None = None,
    batch_size: int = 8,
    max_length: int = 1024,
    lora_rank: int = 0,
    seed: int = 42,
    run_directory: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Dataset:
    """Train the reference model on the rows and write their confidence.

    Args:
        dataset: Rows with `id` and either `prompt` and `completion` or `messages`.
        reference: Folder or Hub id of the reference model.
        output: Parquet file to write.
        checkpoints: C, how often the model is asked, evenly spaced; not used online.
        online: Use the training passes instead of passes of their own; then C is the number of epochs.
        epochs: Passes over the data.
        learning_rate: 2e-5, or 2e-4 with LoRA, if absent.
        batch_size: Rows per process and step.
        max_length: Longest row in tokens; longer ones are cut.
        lora_rank: Rank of a LoRA adapter on all linear layers; 0 trains all weights.
        seed: Seed of the order of the rows and of the adapter.
        run_directory: Folder for the model's checkpoints, one per epoch, from which an interrupted run resumes.
            Without it nothing but the table is kept.
        progress: Told about the steps, instead of the bars and logs of the trainer.
        **settings: Further fields of `trl.SFTConfig`. Where the settings of a later trainer exist already, give its
            `use_cpu`, `bf16` and `fp16`: accelerate has one device and one precision for all trainers of a process.

    Returns:
        The confidence table.

    Raises:
        ValueError: If the dataset has no ids, no rows remain after cutting, or the run directory holds checkpoints of
            other rows, another reference model or other settings.
    """
    if "id" not in dataset.column_names:
        raise ValueError(f"The dataset has no `id` column to key confidences by; it has {dataset.column_names}.")
    if learning_rate is None:
        learning_rate = LORA_LEARNING_RATE if lora_rank else LEARNING_RATE
    claim = {
        "rows": hashlib.sha256("\n".join(map(str, dataset["id"][:])).encode()).hexdigest(),
        "reference model": str(reference),
        "measurements": "online" if online else checkpoints,
        "epochs": epochs,
        "learning rate": learning_rate,
        "batch size": batch_size,
        "maximum length": max_length,
        "LoRA rank": lora_rank,
        "seed": seed,
    }
    last = _last_checkpoint(run_directory, claim)
    with TemporaryDirectory() as scratch:
        values: dict[str, Any] = {
            "num_train_epochs": epochs,
            "learning_rate": learning_rate,
            "per_device_train_batch_size": batch_size,
            "save_strategy": "no" if run_directory is None else "epoch",
            "save_total_limit": 1,
            "seed": seed,
            "output_dir": str(run_directory or scratch),
        }
        if progress is not None:
            progress("reference run", 0, 0)
            values |= {"disable_tqdm": True, "logging_strategy": "no"}
        trainer = _trainer(dataset, reference, max_length, lora_rank, values | settings)
        if progress is not None:
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_Told(progress))
        callback = ConfidenceCallback(trainer, checkpoints=checkpoints, online=online, output=output)
        trainer.add_callback(callback)
        if run_directory is not None and trainer.is_world_process_zero():
            write_json(Path(run_directory) / CLAIM, claim)
        trainer.train(resume_from_checkpoint=last)
    assert callback.table is not None
    return callback.table


def score_checkpoints(
    dataset: Dataset,
    checkpoints: Sequence[str | Path],
    output: str | Path,
    *,
    batch_size: int = 8,
    max_length: int = 1024,
    progress: Progress | None = None,
    **settings: Any,
) -> Dataset:
    """Score the rows under checkpoints that some run has saved: one evaluation pass each.

    Args:
        dataset: Rows with `id` and either `prompt` and `completion` or `messages`.
        checkpoints: Model or adapter folders, in the order of training.
        output: Parquet file to write.
        batch_size: Rows per batch.
        max_length: Longest row in tokens; longer ones are cut.
        progress: Told about the checkpoints.
        **settings: Further fields of `trl.SFTConfig`.

    Returns:
        The confidence table, with the positions 1..C of the checkpoints.

    Raises:
        ValueError: If no checkpoint is named.
    """
    if not checkpoints:
        raise ValueError("No checkpoint is named. Give the folders that the reference run saved.")
    record = ConfidenceRecord()
    told = progress or (lambda *_: None)
    if progress is not None:
        settings = {"disable_tqdm": True} | settings
    with TemporaryDirectory() as scratch:
        for position, checkpoint in enumerate(checkpoints, start=1):
            told("scoring checkpoints", position - 1, len(checkpoints))
            trainer = _trainer(dataset, checkpoint, max_length, 0, {"output_dir": scratch} | settings)
            callback = ConfidenceCallback(trainer, output=output, batch_size=batch_size)
            callback.record = record
            callback.measure(position)
        return callback.finish()


def _trainer(
    dataset: Dataset, model: str | Path, max_length: int, lora_rank: int, values: dict[str, Any]
) -> SFTTrainer:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    defaults: dict[str, Any] = {
        "bf16": device == "cuda" and torch.cuda.is_bf16_supported(),
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device == "cuda",
        "report_to": "none",
        "max_length": max_length,
        "assistant_only_loss": "messages" in dataset.column_names,  # the perplexity of responses, not of prompts
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except OSError as error:
        raise ValueError(f"No model at {str(model)!r}: no model folder, and no Hub id in reach.") from error
    except ValueError as error:
        raise ValueError(f"{str(model)!r} holds no tokenizer that can be read. {error}") from error
    adapter = None
    if lora_rank:
        from peft import LoraConfig

        adapter = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
    columns = [name for name in ("id", "prompt", "completion", "messages") if name in dataset.column_names]
    with warnings.catch_warnings():  # TRL's default has an old name, of which the user need not hear
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        settings = SFTConfig(**(defaults | values))
    trainer = SFTTrainer(
        model=_load(model),
        args=settings,
        train_dataset=as_conversation(dataset.select_columns(columns), tokenizer),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    if not len(trainer.train_dataset):  # type: ignore[arg-type]
        raise ValueError(
            f"None of the {len(dataset)} rows has a response within max_length={max_length} tokens. Raise it, for "
            "example with `lmmixup confidence --max-length`."
        )
    return trainer


def _load(model: str | Path) -> PreTrainedModel:
    if (Path(model) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def _last_checkpoint(run_directory: str | Path | None, claim: dict[str, Any]) -> str | None:
    """The checkpoint from which a run goes on, if it is one of the same run."""
    if run_directory is None:
        return None
    found = [path for path in Path(run_directory).glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    if not found:
        return None
    written = Path(run_directory) / CLAIM
    earlier = read_json(written) if written.is_file() else claim
    if changed := [name for name, value in claim.items() if earlier.get(name) != value]:
        raise ValueError(
            f"{run_directory} holds checkpoints of a reference run with another value of: {', '.join(changed)}. "
            "Delete it to begin anew, or name another folder."
        )
    return str(max(found, key=lambda path: int(path.name.rsplit("-", 1)[1])))
