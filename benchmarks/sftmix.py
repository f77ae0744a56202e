"""What SFTMix costs: time and peak memory of a training step against plain fine-tuning at the same batch.

Both sides are TRL trainers on the same randomly initialized model and the same rows: the baseline is `trl.SFTTrainer`
as it stands. The vocabulary projection is 15 % of the model's forward FLOPs, as in Qwen2.5-1.5B, and every token of
every row carries loss in rows of equal length, the case in which SFTMix does the most work (half as many mixed
positions as tokens). On a GPU the model has the shape of Qwen2.5-1.5B in bfloat16; on a processor a small one in
float32 is trained on one thread, and time is processor time, which other programs on the machine do not lengthen.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np


TIME_TARGET, MEMORY_TARGET = 1.20, 1.15

GPU_SHAPE = {
    "vocab_size": 151_936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
CPU_SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


def head_share(shape: dict[str, int]) -> float:
    """Share of the vocabulary projection in the weights that multiply each token, which is its share of FLOPs."""
    size, heads, groups = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
    attention = 2 * size * size + 2 * size * (size // heads * groups)
    layers = shape["num_hidden_layers"] * (attention + 3 * size * shape["intermediate_size"])
    head = shape["vocab_size"] * size
    return head / (layers + head)


def build(arm: str, options: argparse.Namespace, folder: str) -> tuple:
    """The trainer of one arm, its optimizer and one batch."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from trl import SFTConfig, SFTTrainer

    from hf_lmmixup.sftmix.sftmix_config import SFTMixConfig
    from hf_lmmixup.sftmix.sftmix_trainer import SFTMixTrainer

    gpu = torch.cuda.is_available()
    shape = GPU_SHAPE if gpu else CPU_SHAPE
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1))
    model = model.to(torch.bfloat16) if gpu else model
    rng = np.random.default_rng(0)
    ids = rng.integers(2, shape["vocab_size"], (options.batch, options.length))
    prompt = int(options.length * options.prompt_share)
    rows = [
        {"input_ids": row, "labels": [-100] * prompt + row[prompt:], "confidence": float(-i)}
        for i, row in enumerate(ids.tolist())
    ]
    core = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    config, trainer_class = (SFTMixConfig, SFTMixTrainer) if arm == "sftmix" else (SFTConfig, SFTTrainer)
    trainer = trainer_class(
        model=model,
        args=config(
            output_dir=folder,
            use_cpu=not gpu,
            bf16=gpu,
            per_device_train_batch_size=options.batch,
            gradient_checkpointing=options.checkpointing,
            dataloader_pin_memory=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>"),
    )
    if options.checkpointing:
        model.gradient_checkpointing_enable()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.create_optimizer()
    return trainer, batch


def step(trainer, batch: dict) -> None:  # noqa: ANN001 -- a trainer of either arm
    """One optimizer step on the batch."""
    items = (batch["labels"][:, 1:] != -100).sum()
    trainer.training_step(trainer.model, dict(batch), num_items_in_batch=items)
    trainer.optimizer.step()
    trainer.model.zero_grad()


def clock() -> float:
    """Seconds: of the wall where a GPU works, of this process's processor where not."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure_time(options: argparse.Namespace) -> list[float]:
    """Ratios SFTMix / plain of single steps taken in turn."""
    with tempfile.TemporaryDirectory() as folder:
        arms = {arm: build(arm, options, folder) for arm in ("plain", "sftmix")}
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        for number in range(options.repeats + 2):
            for arm in arms if number % 2 else reversed(arms):
                start = clock()
                step(*arms[arm])
                if number >= 2:  # the first two warm caches and allocate the optimizer's state
                    seconds[arm].append(clock() - start)
    print(", ".join(f"{arm} {statistics.median(values):.3f} s/step" for arm, values in seconds.items()))
    return [ours / plain for ours, plain in zip(seconds["sftmix"], seconds["plain"], strict=True)]


def memory_status(field: str) -> int:
    """A field of this process's status in bytes (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def measure_memory(arm: str, options: argparse.Namespace) -> int:
    """Peak bytes of three steps of one arm in this process, beyond what stood before the model was built."""
    import torch
    from trl import SFTTrainer  # noqa: F401 -- its libraries are no part of the model's memory

    before = 0 if torch.cuda.is_available() else memory_status("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        trainer, batch = build(arm, options, folder)
        for _ in range(3):
            step(trainer, batch)
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory_status("VmHWM") - before


def memory_ratio(options: argparse.Namespace) -> float:
    """Peak of SFTMix / peak of plain, each in a process of its own."""
    peaks = {}
    for arm in ("plain", "sftmix"):
        command = [sys.executable, __file__, "--arm", arm, "--batch", str(options.batch)]
        command += ["--length", str(options.length), "--prompt-share", str(options.prompt_share)]
        command += ["--checkpointing"] if options.checkpointing else []
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks[arm] = json.loads(output.splitlines()[-1])
    print(", ".join(f"{arm} {peak / 1e6:.0f} MB" for arm, peak in peaks.items()))
    return peaks["sftmix"] / peaks["plain"]


def main() -> None:
    """Measure and print one line per target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8, help="rows per step")
    parser.add_argument("--length", type=int, default=None, help="tokens per row (GPU 512, processor 128)")
    parser.add_argument("--prompt-share", type=float, default=0.0, help="part of each row that carries no loss")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--repeats", type=int, default=11, help="steps measured of each arm")
    parser.add_argument("--arm", choices=["plain", "sftmix"], help="measure the memory of this arm alone")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(1)
    options.length = options.length or (512 if torch.cuda.is_available() else 128)
    if options.arm:
        print(json.dumps(measure_memory(options.arm, options)))
        return
    shape = GPU_SHAPE if torch.cuda.is_available() else CPU_SHAPE
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "one thread"
    print(f"{device}, {options.batch} x {options.length} tokens, projection {head_share(shape):.1%} of the FLOPs")
    ratios, memory = measure_time(options), memory_ratio(options)
    ratio = statistics.median(ratios)
    print(
        f"sftmix memory: ratio={memory:.3f} target<={MEMORY_TARGET} {'ok' if memory <= MEMORY_TARGET else 'short'} "
        "(median of 1)"
    )
    print(
        f"sftmix time: ratio={ratio:.3f} target<={TIME_TARGET} {'ok' if ratio <= TIME_TARGET else 'short'} "
        f"(median of {len(ratios)}, spread {min(ratios):.3f}-{max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
