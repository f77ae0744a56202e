"""Training through TRL's own command line: a YAML file is written, `trl sft` or `trl grpo` reads it.

Nothing of TRL is subclassed or imported here. What a run trained with lies in its directory as a file that can be run
again by hand::

    trl sft --config runs/quickstart/training/cold_start.yaml

A training that was killed goes on from its last checkpoint when the same call is made again. Before a model is loaded,
`preflight` looks for mistakes.
"""

import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_lmmixup.checkpoints import alone, own_checkpoint, read_history, training_mark
from hf_lmmixup.fingerprint import input_fingerprint
from hf_lmmixup.preflight import LAUNCH_KEYS, check
from hf_lmmixup.process_environment import ENVIRONMENT
from hf_lmmixup.recipe import read_yaml


logger = logging.getLogger(__name__)

METHODS = ("sft", "grpo")

NO_NULL = (*LAUNCH_KEYS, "dataset_config", "num_train_epochs", "save_steps")
"""Keys that `null` leaves out; that of others, such as `max_length`, switches a default of TRL's off."""

MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""What a model folder is made of; optimizer states, `training_args.bin` and checkpoints are not."""

NOT_MODEL_FILES = ("trainer_state.json",)

STEP = re.compile(rb"(\d{1,9})/(\d{1,9}) \[")
"""A step count in the progress bar of the trainer, such as `37/150 [`."""

ERROR_LINE = re.compile(r"^(?:\w[\w.]*(?:Error|Exception|Interrupt)\b|[\w. ]+: error:).*", re.MULTILINE)
"""The last line of a Python traceback, or what a command line says of its arguments."""

MAX_LOG_BYTES = 100_000

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""Makes glibc keep freed memory for the next step: fetching it anew from the system takes a tenth of a step's time."""

LAUNCHER = "subprocess.CalledProcessError"
"""Accelerate's own error about a training that failed; the cause stands above it."""


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        model: Folder of the trained model.
        history: What the trainer logged, one mapping each `logging_steps`, with `step` in each.
        config: The YAML file that `trl` was given.
    """

    model: Path
    history: list[dict[str, Any]]
    config: Path


def train(
    method: str,
    recipe: Path,
    overrides: Mapping[str, Any],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Training:
    """Run one TRL training to its end, from its last checkpoint if there is one.

    Args:
        method: `sft` or `grpo`.
        recipe: TRL recipe with the hyper-parameters.
        overrides: Keys that the run decides: model, dataset, seed; `None` is YAML's `null`.
        folder: Where checkpoints and the model go; the log is `folder.log`, the configuration `folder.yaml`.
        environment: Variables for the training process, on top of this process's own.
        on_step: Called with the steps done and the steps in all, from the trainer's progress bar.

    Returns:
        The trained model, and what the trainer logged.

    Raises:
        ImportError: If the `train` extra is missing.
        ValueError: If the method is unknown, `preflight` finds a mistake, a checkpoint is not this training's, or
            another process is still training into the folder.
        RuntimeError: If the training fails; the message has the error from its log.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown training method {method!r}. Expected one of {list(METHODS)}.")
    config = training_config(method, recipe, overrides, folder, dict(environment or {}))
    for warning in check(method, config, environment).warnings:
        logger.warning("%s: %s", recipe.name, warning)
    mark = training_mark(method, config | {"contents": _contents(config, environment or {})}, dict(environment or {}))
    config["run_name"] = f"{config.get('run_name') or folder.name}-{mark}"
    if (checkpoint := own_checkpoint(folder, mark)) is not None:
        config["resume_from_checkpoint"] = str(checkpoint)
        logger.info("%s goes on from %s.", folder.name, checkpoint.name)
    file, log = (beside(folder, suffix) for suffix in (".yaml", ".log"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command, begin = [*trl_command(), method, "--config", str(file)], log.stat().st_size if log.is_file() else 0
    code = _run(command, log, dict(environment or {}), on_step)
    if code != 0:
        raise RuntimeError(
            f"`trl {method} --config {file}` ended with exit code {code}: {_cause(log, begin)} All of it: {log}"
        )
    return Training(folder, read_history(folder), file)


def training_config(
    method: str, recipe: Path, overrides: Mapping[str, Any], folder: Path, environment: Mapping[str, str]
) -> dict[str, Any]:
    """The keys that `trl` gets: those of the recipe, those that the caller decides, and where checkpoints go.

    Args:
        method: `sft` or `grpo`.
        recipe: TRL recipe.
        overrides: Keys that replace those of the recipe; `None` is YAML's `null`.
        folder: Where checkpoints and the model go.
        environment: Variables that replace those of the recipe's `env`.

    Returns:
        The keys, less those of `NO_NULL` that are `None`.

    Raises:
        ValueError: If the recipe names a checkpoint to go on from.
    """
    config = read_yaml(recipe) | dict(overrides)
    if config.get("resume_from_checkpoint"):
        raise ValueError("resume_from_checkpoint is not for recipes: a training goes on from its own checkpoints.")
    config |= {"output_dir": str(folder), "save_strategy": "steps", "save_total_limit": 1}
    config = {key: value for key, value in config.items() if value is not None or key not in NO_NULL}
    config.setdefault("save_steps", 50)
    if config.get("env"):  # TRL sets these over the variables that it is called with
        config["env"] = {name: environment.get(name, value) for name, value in config["env"].items()}
    return config | (_vllm() if method == "grpo" and config.get("use_transformers_continuous_batching") else {})


def _vllm() -> dict[str, bool]:
    """Sample with vLLM instead of continuous batching where it is installed and a GPU is there.

    With vLLM the policy computes in bfloat16; TRL 1.16 would cast its weights for good with continuous batching.
    """
    if importlib.util.find_spec("vllm") is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"use_vllm": True, "use_transformers_continuous_batching": False, "bf16": True}


def trl_command() -> list[str]:
    """How to call TRL's command line with this interpreter, wherever the script `trl` was installed.

    Raises:
        ImportError: If TRL is not installed.
    """
    if importlib.util.find_spec("trl") is None:
        raise ImportError('Training needs TRL: pip install "hf-lmmixup[train]".')
    return [sys.executable, "-c", "import sys; from trl.cli import main; sys.exit(main())"]


def beside(folder: Path, suffix: str) -> Path:
    """The file of a training beside its folder. A folder's name may hold dots, as in `qwen2.5-1.5b-sft`."""
    return folder.with_name(folder.name + suffix)


def copy_model(source: Path, target: Path) -> None:
    """Copy the files of a model, and only those, into an existing folder."""
    for file in _model_files(source):
        shutil.copyfile(file, target / file.name)


def _model_files(folder: Path) -> Iterator[Path]:
    for pattern in MODEL_FILES:
        for file in sorted(folder.glob(pattern)):
            if file.name not in NOT_MODEL_FILES and file.is_file() and not file.is_symlink():
                yield file


def _contents(config: Mapping[str, Any], environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """What lies where the settings point to on this machine: other rows or weights make another training."""
    variables = (config.get("env") or {}) | dict(environment)
    named = [config.get("dataset_name"), *(part.get("path") for part in config.get("datasets") or ())]
    found = [str(name) for name in (*named, variables.get("HF_LMMIXUP_DATASTORE")) if name and Path(name).exists()]
    weights = map(str, _model_files(Path(str(config.get("model_name_or_path")))))
    return [input_fingerprint(name) for name in (*found, *weights)]


def _run(
    command: list[str], log: Path, environment: dict[str, str], on_step: Callable[[int, int], None] | None
) -> int:
    tuning = {"OMP_NUM_THREADS": str(cores())} | ENVIRONMENT | KEEP_MEMORY
    with (
        alone(log.with_suffix(".lock")) as lock,
        log.open("ab") as file,
        subprocess.Popen(
            command,
            env=tuning | os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),  # held by the training even if this process is killed
        ) as process,
        ExitStack() as failed,
    ):
        failed.callback(_end, process.pid)
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 65536):
            file.write(chunk)
            file.flush()
            steps = [pair for part in chunk.split(b"\r") if b"examples" not in part for pair in STEP.findall(part)]
            if on_step is not None and steps:
                on_step(int(steps[-1][0]), int(steps[-1][1]))
        failed.pop_all()  # it ended by itself
    return process.returncode


def _end(launcher: int) -> None:
    """End a training: `trl` waits for the process that trains, which would outlive it."""
    import psutil  # comes with accelerate

    with suppress(psutil.NoSuchProcess):
        above = psutil.Process(launcher)
        for process in (*above.children(recursive=True), above):
            with suppress(psutil.NoSuchProcess):
                process.terminate()


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cause(log: Path, begin: int) -> str:
    """The error that ended a training, from the end of its log; what earlier trainings wrote ends at `begin`."""
    text = log.read_bytes()[begin:][-MAX_LOG_BYTES:].decode("utf-8", errors="replace")
    causes = [line for line in ERROR_LINE.findall(text) if not line.startswith(LAUNCHER)]
    return causes[-1] if causes else "its log names no error."
