"""The checkpoints of a training: which are whole, which are its own, what the trainer logged up to the last one.

    models/qwen2.5-1.5b-sft/checkpoint-100/{model.safetensors, optimizer.pt, rng_state.pth, training_args.bin,
                                            trainer_state.json}

Resuming reads files that can do harm, and the state of another training would be taken over without a word. So a
training carries a mark, a digest of its settings, model and data at the end of `run_name`, which the trainer itself
writes into every checkpoint; a checkpoint without the mark is refused. The mark is looked for in the bytes; nothing is
unpickled.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


STATE, ARGUMENTS = "trainer_state.json", "training_args.bin"

NOT_SETTINGS = ("output_dir", "resume_from_checkpoint", "run_name", "report_to")
"""Keys that do not change what is trained."""

MARK_LENGTH = 16


def training_mark(method: str, config: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """A digest of what is trained and how.

    Args:
        method: `sft` or `grpo`.
        config: Keys of the recipe.
        environment: Variables that the rewards read.

    Returns:
        16 hexadecimal digits.
    """
    settings = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
    text = json.dumps([method, settings, dict(environment)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:MARK_LENGTH]


@contextmanager
def alone(lock: Path) -> Iterator[int]:
    """Let one training at a time write into a folder.

    Args:
        lock: The file that is locked.

    Yields:
        Its descriptor: whoever inherits it keeps the lock, so that a training whose caller was killed is not joined by
        a second one.

    Raises:
        ValueError: If another process holds the lock.
    """
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"A training still writes to {lock.with_suffix('')}, perhaps one whose caller was stopped. Wait for "
                "it or end it."
            ) from error
        yield file.fileno()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint below a training folder; the trainer writes its state file last."""
    complete = [path for path in folder.glob("checkpoint-*") if _state(path) is not None]
    return max(complete, key=_step, default=None)


def own_checkpoint(folder: Path, mark: str) -> Path | None:
    """The checkpoint to go on from.

    Args:
        folder: The training folder.
        mark: What `training_mark` gave.

    Returns:
        The newest complete checkpoint; `None` if there is none.

    Raises:
        ValueError: If that checkpoint was not made by this training, or is a link to elsewhere.
    """
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return None
    arguments = checkpoint / ARGUMENTS
    linked = [path for path in (checkpoint, *checkpoint.rglob("*")) if path.is_symlink()]
    if linked or not arguments.is_file() or mark.encode() not in arguments.read_bytes():
        raise ValueError(
            f"{checkpoint} was not made by this training: its settings, model or data differ, or it comes from "
            "elsewhere. Delete it or move it away to start anew, or train into another folder."
        )
    return checkpoint


def read_history(folder: Path) -> list[dict[str, Any]]:
    """What the trainer logged up to its last checkpoint; empty if there is none."""
    checkpoint = last_checkpoint(folder)
    state = _state(checkpoint) if checkpoint is not None else None
    return [entry for entry in state["log_history"] if "step" in entry] if state else []


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _state(checkpoint: Path) -> dict[str, Any] | None:
    """The trainer's state; `None` if the checkpoint was not finished."""
    file = checkpoint / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and "log_history" in state and _step(checkpoint) >= 0 else None
