"""A callback that notes, during any supervised run of TRL, how well the model knows every response.

    trainer = SFTTrainer(model, train_dataset=rows, args=SFTConfig(num_train_epochs=3))
    callback = ConfidenceCallback(trainer, checkpoints=3)
    trainer.add_callback(callback)
    trainer.train()
    rows = attach_confidence(rows, callback.table)

By default the model is evaluated on the whole training set at C evenly spaced steps, the last one at the end. With
`online=True` no pass is added: the log-probabilities that the training pass computes anyway are kept, one value per
row and epoch, so C is the number of epochs and each row is judged at the moment it is trained on (with dropout, if the
model has any). The model may be a weaker one than the model to be trained later: confidences are keyed by row id.

Source: SFTMix, arXiv 2410.05248, confidence from training dynamics. Its C and the spacing are not published.
"""

import logging
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import SFTTrainer

from hf_lmmixup.sftmix.confidence import CONFIDENCE, ConfidenceRecord, load_confidence, save_confidence
from hf_lmmixup.sftmix.response_nll import keep_weights_unpacked, row_key, rows_of_batch, score_responses


logger = logging.getLogger(__name__)

DEFAULT_CHECKPOINTS = 3
"""One per epoch of the paper's Alpaca runs; the paper names no number."""

FILE_NAME = "confidence.parquet"


class ConfidenceCallback(TrainerCallback):
    """Records the confidence of every row of the training set.

    Args:
        trainer: The trainer it will be added to. Its training set needs a column of row ids.
        checkpoints: C, the number of evaluation passes; not used by an online run.
        online: Take the values from the training passes.
        output: Parquet file for the table; `confidence.parquet` in the run's output folder if absent.
        id_column: Column with the row ids.
        batch_size: Rows per batch of an evaluation pass; the run's evaluation batch size if absent.

    Attributes:
        table: The confidence table, after training; the same on every process.

    Raises:
        ValueError: If the rows of a batch cannot be told apart, have no ids, or the options contradict each other.
    """

    def __init__(
        self,
        trainer: SFTTrainer,
        *,
        checkpoints: int = DEFAULT_CHECKPOINTS,
        online: bool = False,
        output: str | Path | None = None,
        id_column: str = "id",
        batch_size: int | None = None,
    ) -> None:
        if checkpoints < 1:
            raise ValueError(f"checkpoints={checkpoints} must be 1 or more.")
        _refuse_what_cannot_be_measured(trainer, online, id_column)
        self.trainer = trainer
        self.checkpoints = checkpoints
        self.online = online
        self.output = Path(output if output is not None else f"{trainer.args.output_dir}/{FILE_NAME}")
        self.ids: list[str] = [str(identifier) for identifier in trainer.train_dataset[id_column][:]]  # type: ignore[index]
        self.batch_size = batch_size or trainer.args.per_device_eval_batch_size
        self.record = ConfidenceRecord()
        self.table: Dataset | None = None
        self._due: set[int] = set()
        self._rows: dict[str, list[str]] = {}
        self._unknown = 0
        self._hook: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Plan the passes, or start to listen to the training passes; on resumption read what was recorded."""
        if state.global_step:
            self._resume(state.global_step)
        keep_weights_unpacked(self.trainer.model)  # type: ignore[arg-type]
        if self.online:
            self._rows = self._rows_by_content()
            self._hook = self.trainer.model.register_forward_hook(self._listen, with_kwargs=True)  # type: ignore[union-attr]
            return
        if self.checkpoints > state.max_steps:
            raise ValueError(
                f"checkpoints={self.checkpoints} is more than the run's {state.max_steps} steps. Give more rows or "
                "epochs, or fewer checkpoints (`lmmixup confidence --checkpoints`)."
            )
        self._due = {round(state.max_steps * (i + 1) / self.checkpoints) for i in range(self.checkpoints)}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate the training set if this step is one of the C."""
        if state.global_step in self._due:
            self.measure(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep this process's part beside the checkpoint, so that a resumed run goes on from it."""
        part = self._folder(state.global_step) / f"confidence-{args.process_index}-of-{args.world_size}.parquet"
        save_confidence(self.record.to_dataset(), part)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Merge the processes' parts and write the table."""
        if self._hook is not None:
            self._hook.remove()
        self.finish()

    def measure(self, checkpoint: int) -> None:
        """One evaluation pass over this process's share of the rows, noted as `checkpoint`."""
        for number, nll, tokens in score_responses(self.trainer, self.batch_size):
            if tokens:
                self.record.add(self.ids[number], checkpoint, nll, tokens)

    def finish(self) -> Dataset:
        """The table of all processes; the main process writes it to `output`.

        Raises:
            ValueError: If an online run recognized none of the rows it trained on.
        """
        parts = gather_object([self.record.to_dataset().to_dict()])
        merged = ConfidenceRecord()
        for part in parts:
            merged.update(Dataset.from_dict(part, features=CONFIDENCE))
        if not len(merged):
            raise ValueError(
                f"No response was measured; {self._unknown} rows of training batches were not recognized. Does a "
                "custom data collator change tokens or labels? Then use online=False."
            )
        missing = len(set(self.ids)) - len(merged)
        if missing or self._unknown:
            logger.warning("%d rows were not measured, %d rows not recognized.", missing, self._unknown)
        self.table = merged.to_dataset()
        if self.trainer.is_world_process_zero():
            save_confidence(self.table, self.output)
        return self.table

    def _listen(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        log_probs = getattr(output, "log_probs", None)
        if not model.training or log_probs is None or not log_probs.requires_grad:
            return
        epoch = int(self.trainer.state.epoch or 0) + 1
        for key, nll, tokens in rows_of_batch(kwargs, log_probs):
            identifiers = self._rows.get(key, [])
            self._unknown += not identifiers
            for identifier in identifiers:
                self.record.add(identifier, epoch, nll, tokens)

    def _rows_by_content(self) -> dict[str, list[str]]:
        rows: dict[str, list[str]] = {}
        dataset: Any = self.trainer.train_dataset
        for identifier, row in zip(self.ids, dataset.select_columns(["input_ids", "labels"]), strict=True):
            rows.setdefault(row_key(row["input_ids"], row["labels"]), []).append(identifier)
        return rows

    def _folder(self, step: int) -> Path:
        return Path(f"{self.trainer.args.output_dir}/checkpoint-{step}")

    def _resume(self, step: int) -> None:
        parts = sorted(self._folder(step).glob("confidence-*-of-*.parquet"))
        if not parts:
            raise ValueError(
                f"The run resumes at step {step}, but {self._folder(step)} holds no recorded confidence: the rows "
                "seen so far would be missing. Start the reference run anew with this callback."
            )
        # One process takes all parts: the resumed run may have another number of processes.
        for part in parts if self.trainer.is_world_process_zero() else []:
            self.record.update(load_confidence(part))


def _refuse_what_cannot_be_measured(trainer: SFTTrainer, online: bool, id_column: str) -> None:
    if getattr(trainer.args, "packing", False):
        raise ValueError("With packing=True the rows of a batch cannot be told apart. Set packing=False for this run.")
    dataset = trainer.train_dataset
    if not isinstance(dataset, Dataset):
        raise ValueError(f"Confidence needs a `datasets.Dataset` with row ids, got {type(dataset).__name__}.")
    if id_column not in dataset.column_names:
        raise ValueError(
            f"The training set has no column {id_column!r} to key confidences by; it has {dataset.column_names}. Add "
            "one, for example with `hf_lmmixup.records.row_id`."
        )
    if (trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()) and not online:
        raise ValueError("Evaluation passes cannot run on sharded weights (FSDP, ZeRO-3). Use online=True.")
