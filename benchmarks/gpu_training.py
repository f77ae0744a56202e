"""What training costs on one GPU: SFT by full weights, LoRA and QLoRA, and where the time of a GRPO step goes.

    python benchmarks/gpu_training.py                   # the shape of Qwen2.5-1.5B, random weights: no download
    python benchmarks/gpu_training.py --shape tiny      # the same code in seconds on a CPU

TRL's own trainers run, on random weights, which cost what trained ones cost. SFT rows are full (`--length` tokens of
loss). In GRPO every completion has `--completion` tokens, since random weights rarely end one; the rewards are the
three of LM-Mixup, and they are given distinct well-formed completions in place of the random ones, since they would
hardly look at those. The target is a share of the rewards in a step of at most 3 %.
"""

import argparse
import gc
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any


REWARD_SHARE = 0.03

SHAPES = {
    "qwen2.5-1.5b": {
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}

# Tokens of an SFT row, rows a step, tokens of a completion, completions a step, and of those at a time in the loss.
SIZE_NAMES = ("length", "rows", "completion", "completions", "micro")
SIZES = {"qwen2.5-1.5b": (2400, 4, 512, 64, 4), "tiny": (128, 2, 16, 8, 4)}

WARM_UP = 2

ARMS = {"full": {}, "LoRA": {"peft": True}, "QLoRA": {"peft": True, "four_bit": True}}


def write_model(shape: str, folder: Path) -> Path:
    """A model folder with random weights and a small tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from hf_lmmixup.bundled import mini_clusters
    from hf_lmmixup.tiny_distiller import build_tiny_distiller

    texts = [cluster["target"] for cluster in mini_clusters(split="train")]
    tokenizer = AutoTokenizer.from_pretrained(build_tiny_distiller(folder / "tiny", texts))
    config = Qwen2Config(
        **SHAPES[shape],
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def common(folder: Path, steps: int, gpu: bool) -> dict[str, Any]:
    """Settings of both trainers."""
    return {
        "output_dir": str(folder / "out"),
        "max_steps": WARM_UP + steps,
        "use_cpu": not gpu,
        "bf16": gpu,
        "gradient_checkpointing": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }


def stopwatch(gpu: bool) -> Any:
    """A callback that notes the time of each step."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[float] = []
            self.started = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = now(gpu)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps.append(now(gpu) - self.started)

    return Stopwatch()


def now(gpu: bool) -> float:
    """The time, once the GPU has done what it was told."""
    if gpu:
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def measure_sft(
    arm: str, model: Path, options: argparse.Namespace, gpu: bool
) -> tuple[float, float, float, float | None]:
    """Tokens a second (median, least, most) and peak GiB of one way to train."""
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from hf_lmmixup.four_bit import keep_layout

    rng = np.random.default_rng(0)
    rows = rng.integers(10, 1000, (64, options.length)).tolist()
    four_bit, peft = ARMS[arm].get("four_bit", False), ARMS[arm].get("peft", False)
    dtype = "bfloat16" if gpu and peft else "float32"
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    watch = stopwatch(gpu)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer = SFTTrainer(
        model=str(model),
        args=SFTConfig(
            **common(model.parent, options.repeats, gpu),
            per_device_train_batch_size=options.rows,
            max_length=options.length,
            model_init_kwargs={"dtype": dtype},
            dataset_kwargs={"skip_prepare_dataset": True},
            optim="paged_adamw_8bit" if gpu and four_bit else "adamw_torch",
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        quantization_config=quantization if four_bit else None,
        peft_config=lora() if peft else None,
        callbacks=[watch],
    )
    if four_bit:
        keep_layout(trainer.model)
    trainer.train()
    rates = [options.rows * options.length / seconds for seconds in watch.steps[WARM_UP:]]
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else None
    del trainer
    free(gpu)
    return statistics.median(rates), min(rates), max(rates), peak


def lora() -> Any:
    """The adapter of the recipes."""
    from peft import LoraConfig

    return LoraConfig(r=64, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def measure_grpo(model: Path, options: argparse.Namespace, gpu: bool) -> dict[str, list[float]]:
    """Seconds of each step, in all and in its parts."""
    from datasets import load_dataset
    from trl import GRPOConfig, GRPOTrainer

    import hf_lmmixup
    from hf_lmmixup import rewards

    watch = stopwatch(gpu)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            model=str(model),
            reward_funcs=[hf_lmmixup.quality_reward, rewards.alignment_reward, rewards.format_reward],
            args=GRPOConfig(
                **common(model.parent, options.repeats, gpu),
                per_device_train_batch_size=options.micro,
                gradient_accumulation_steps=options.completions // options.micro,
                num_generations=4,
                max_completion_length=options.completion,
                reward_weights=[0.5, 0.4, 0.1],
                beta=0.01,
                epsilon_high=0.3,
                model_init_kwargs={"dtype": "float32"},
            ),
            train_dataset=load_dataset("mixture", "grpo", split="train"),
            callbacks=[watch],
        )
    parts: dict[str, list[float]] = {"generation": [], "rewards": []}
    trainer._generate = timed(trainer._generate, parts["generation"], gpu)
    trainer._calculate_rewards = timed(with_good_completions(trainer._calculate_rewards), parts["rewards"], gpu)
    trainer.train()
    parts = {name: seconds[WARM_UP:] for name, seconds in parts.items()} | {"step": watch.steps[WARM_UP:]}
    rest = zip(parts["step"], parts["generation"], parts["rewards"], strict=True)
    parts["loss and update"] = [step - generation - judging for step, generation, judging in rest]
    del trainer
    free(gpu)
    return parts


def timed(function: Callable, seconds: list[float], gpu: bool) -> Callable:
    """A function that notes how long it takes."""

    def wrapped(*given: Any, **named: Any) -> Any:
        started = now(gpu)
        try:
            return function(*given, **named)
        finally:
            seconds.append(now(gpu) - started)

    return wrapped


def with_good_completions(calculate: Callable) -> Callable:
    """The rewards of distinct, well-formed completions, none of which the encoder has met."""
    from hf_lmmixup.prompts import format_completion

    number = count()

    def wrapped(inputs: list, prompts: list, completions: list, ids: list) -> Any:
        texts = [format_completion("Both say it.", f"{row['reference']} ({next(number)})") for row in inputs]
        return calculate(inputs, prompts, [[{"role": "assistant", "content": text}] for text in texts], ids)

    return wrapped


def free(gpu: bool) -> None:
    """Give memory back before the next arm."""
    gc.collect()
    if gpu:
        import torch

        torch.cuda.empty_cache()


def describe(options: argparse.Namespace, gpu: bool) -> str:
    """Where and with what it was measured."""
    import torch
    import transformers
    import trl

    device = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} thread(s)"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}"
    return f"{date.today()}, {device}, shape {options.shape}, random weights, {versions}"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print two tables and the line of the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen2.5-1.5b")
    parser.add_argument("--repeats", type=int, default=5, help="steps measured of each arm")
    for place, name in enumerate(SIZE_NAMES):
        by_shape = ", ".join(f"{sizes[place]} for {shape}" for shape, sizes in SIZES.items())
        parser.add_argument(f"--{name}", type=int, help=f"by default {by_shape}")
    options = parser.parse_args(arguments)
    for name, value in zip(SIZE_NAMES, SIZES[options.shape], strict=True):
        setattr(options, name, getattr(options, name) or value)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import os

    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    gpu = torch.cuda.is_available()
    os.environ.setdefault("HF_LMMIXUP_DATASTORE", "bundled")
    if not gpu and options.shape != "tiny":
        raise SystemExit("There is no CUDA GPU here. `--shape tiny` runs the same code on a CPU.")
    print(f"{describe(options, gpu)}\n")
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(options.shape, Path(folder))
        print_sft(model, options, gpu)
        print_grpo(model, options, gpu)


def print_sft(model: Path, options: argparse.Namespace, gpu: bool) -> None:
    """The table of the three ways to train."""
    print(f"| SFT, {options.rows} x {options.length} tokens | tokens/s | peak GiB |\n|---|---|---|")
    for arm in ARMS:
        rate, least, most, peak = measure_sft(arm, model, options, gpu)
        memory = "not known" if peak is None else f"{peak:.1f}"
        print(f"| {arm} | {rate:,.0f} ({least:,.0f}-{most:,.0f}) | {memory} |")


def print_grpo(model: Path, options: argparse.Namespace, gpu: bool) -> None:
    """The table of a step's parts and the line of the target."""
    parts = measure_grpo(model, options, gpu)
    shares = [judging / step for judging, step in zip(parts["rewards"], parts["step"], strict=True)]
    size = f"{options.completions} completions of {options.completion} tokens"
    print(f"\n| GRPO step, {size} | seconds | share |\n|---|---|---|")
    for name in ("generation", "rewards", "loss and update", "step"):
        seconds = statistics.median(parts[name])
        print(f"| {name} | {seconds:.3f} | {seconds / statistics.median(parts['step']):.1%} |")
    share = statistics.median(shares)
    verdict = "ok" if share <= REWARD_SHARE else "short"
    if options.shape == "tiny":
        verdict = "says nothing at this shape"
    print(
        f"\ngpu_training rewards: ratio={share:.4f} target<={REWARD_SHARE} {verdict} (median of {len(shares)}, spread "
        f"{min(shares):.4f}-{max(shares):.4f})"
    )


if __name__ == "__main__":
    main()
