"""Do Mosaic-IT and SFTMix help? Tiny models from scratch, tasks with exact answers, several seeds.

Nine families of string and number tasks, for example `reverse k d f a :` -> `a f d k`. Every seed draws its own rows,
its own initial weights and its own order, and trains six arms with the same number of steps and of rows per step:

    plain      trl.SFTTrainer; its run also records the confidence that the other arms use
    mosaic     plain concatenations of one to three rows, another pass in every epoch
    sftmix     SFTMixTrainer with the paper's mu = 0.2 and alpha = 0.5
    both       mosaics whose rows lie in one half, mixed
    random     control: SFTMix between any two rows of a batch, whatever their confidence
    shuffled   control: SFTMix with the confidences dealt out to other rows

The score is the share of 400 unseen prompts that are answered exactly; beside it stands the share of 200 prompts of
two tasks of which both are. Each arm is compared with plain seed by seed; the interval is Student's, 95 %. One line
per arm comes out, whatever it says; there is no target. Rows, steps and learning rate were settled on seed 100, which
is not among the seeds reported.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np


ARMS = ("plain", "mosaic", "sftmix", "both", "random", "shuffled")
DIGITS, LETTERS = [*"0123456789"], [*"abcdefgh"]
ROWS_PER_STEP, MOSAIC_ROWS, TEST_ROWS = 32, 2, 400
"""Rows in a step; mean rows in a mosaic of one to three; unseen prompts."""

STUDENT_95 = {4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 11: 2.201, 15: 2.131, 19: 2.093}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom."""

FAMILIES = ("copy", "reverse", "sort", "last", "length", "next", "sum", "greatest", "second")


def make_row(rng: np.random.Generator) -> dict[str, str]:
    """One task and its answer, of a random family."""
    family = str(rng.choice(FAMILIES))
    if family in ("sum", "next", "greatest"):
        numbers = [int(number) for number in rng.integers(1, 30, 2)]
        task = " ".join(" ".join(str(number)) + " ," for number in numbers)
        value = {"sum": sum(numbers), "next": numbers[0] + 1, "greatest": max(numbers)}[family]
        return {"prompt": f"{family} {task} :", "completion": " ".join(str(value))}
    symbols = [str(symbol) for symbol in rng.choice(LETTERS, rng.integers(3, 6))]
    answer = {
        "copy": symbols,
        "reverse": symbols[::-1],
        "sort": sorted(symbols),
        "last": symbols[-1:],
        "length": [str(len(symbols))],
        "second": symbols[1:2],
    }[family]
    return {"prompt": f"{family} {' '.join(symbols)} :", "completion": " ".join(answer)}


def make_rows(rng: np.random.Generator, count: int, seen: set[str]) -> list[dict[str, str]]:
    """Rows with prompts that are not in `seen`, which grows by them."""
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        row = make_row(rng)
        if row["prompt"] not in seen:
            seen.add(row["prompt"])
            rows.append({"id": f"{len(seen):06d}", **row})
    return rows


def make_tokenizer() -> Any:
    """One token per symbol and word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", ":", ",", *DIGITS, *LETTERS, *FAMILIES]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    core.pre_tokenizer = pre_tokenizers.Sequence(split)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left", model_max_length=256
    )


def make_model(tokenizer: Any, seed: int) -> Any:
    """About 140,000 weights: Qwen2, two layers, width 64."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def accuracy(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """Share of rows whose greedy completion is the answer, with the end of sequence where it belongs."""
    import torch

    model.eval()
    prompts = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    prompts.pop("token_type_ids", None)
    with torch.no_grad():
        made = model.generate(**prompts, max_new_tokens=14, do_sample=False)[:, prompts["input_ids"].shape[1] :]
    right = 0
    for row, ids in zip(rows, made.tolist(), strict=True):
        end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else None
        right += end is not None and ids[:end] == tokenizer(row["completion"])["input_ids"]
    return right / len(rows)


def joined_pairs(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Two tasks in one prompt, both to be answered in order: what only mosaics train."""
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return [{side: f"{one[side]} {two[side]}" for side in ("prompt", "completion")} for one, two in pairs]


def random_pairs_trainer() -> type:
    """The control that pairs any two rows of a randomly ordered batch."""
    import torch
    from trl import SFTTrainer

    from hf_lmmixup.sftmix.pair_stream import HALF
    from hf_lmmixup.sftmix.sftmix_trainer import SFTMixTrainer

    class RandomPairs(SFTMixTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SFTTrainer._get_train_sampler(self, train_dataset)

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if HALF in inputs:
                inputs[HALF] = torch.ones_like(inputs[HALF])
                inputs[HALF][1::2] = -1
            return super().compute_loss(model, inputs, *args, **kwargs)

    return RandomPairs


def training_set(arm: str, rows: list[dict[str, str]], confidence: Any, seed: int) -> Any:
    """The rows of one arm, with the confidence where it needs one."""
    from datasets import Dataset

    from hf_lmmixup.mosaic import mosaic
    from hf_lmmixup.mosaic_config import MosaicConfig
    from hf_lmmixup.sftmix import attach_confidence

    dataset = Dataset.from_list(rows)
    if arm not in ("plain", "mosaic"):
        dataset = attach_confidence(dataset, confidence)
    if arm == "shuffled":
        values = np.random.default_rng(seed).permutation(dataset["confidence"][:])
        dataset = dataset.remove_columns("confidence").add_column("confidence", values)
    if arm in ("mosaic", "both"):
        keep_apart = "confidence" if arm == "both" else None
        config = MosaicConfig(
            strategies={"primary": 1.0}, max_items=3, max_tokens=None, seed=seed, keep_apart=keep_apart
        )
        return mosaic(dataset, config=config)
    return dataset


def train(arm: str, rows: list[dict[str, str]], confidence: Any, seed: int, options: argparse.Namespace) -> tuple:
    """Train one arm; returns its model, tokenizer, confidence table (plain only) and the tokens it saw."""
    from trl import SFTConfig, SFTTrainer

    from hf_lmmixup.sftmix import ConfidenceCallback, SFTMixConfig, SFTMixTrainer

    tokenizer = make_tokenizer()
    joined = arm in ("mosaic", "both")
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "max_steps": options.steps,
            "per_device_train_batch_size": ROWS_PER_STEP // (MOSAIC_ROWS if joined else 1),
            "learning_rate": options.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 20,
            "seed": seed,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "max_length": None,
        }
        mixed = arm not in ("plain", "mosaic")
        kind = {"plain": SFTTrainer, "mosaic": SFTTrainer, "random": random_pairs_trainer()}.get(arm, SFTMixTrainer)
        trainer = kind(
            model=make_model(tokenizer, seed),
            args=(SFTMixConfig if mixed else SFTConfig)(**settings),
            train_dataset=training_set(arm, rows, confidence, seed),
            processing_class=tokenizer,
        )
        callback = ConfidenceCallback(trainer, checkpoints=3, batch_size=256) if arm == "plain" else None
        if callback:
            trainer.add_callback(callback)
        trainer.train()
    return trainer.model, tokenizer, callback.table if callback else None, trainer._total_train_tokens


def run_seed(seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All arms with one seed."""
    rng = np.random.default_rng(seed)
    seen: set[str] = set()
    rows, test = make_rows(rng, options.rows, seen), make_rows(rng, TEST_ROWS, seen)
    results, confidence = {}, None
    for arm in ARMS:
        started = time.process_time()
        model, tokenizer, table, tokens = train(arm, rows, confidence, seed, options)
        confidence = table if arm == "plain" else confidence
        results[arm] = {
            "accuracy": accuracy(model, tokenizer, test),
            "two_at_once": accuracy(model, tokenizer, joined_pairs(test)),
            "tokens": float(tokens),
            "seconds": time.process_time() - started,
        }
        print(f"seed {seed} {arm}: {json.dumps(results[arm])}", flush=True)
    return results


def summary(arm: str, runs: list[dict[str, dict[str, float]]]) -> str:
    """One line: the paired difference from plain and its interval."""
    differences = [100 * (run[arm]["accuracy"] - run["plain"]["accuracy"]) for run in runs]
    mean, count = statistics.mean(differences), len(differences)
    degrees = max(key for key in STUDENT_95 if key <= count - 1)
    half = STUDENT_95[degrees] * statistics.stdev(differences) / count**0.5
    verdict = "better" if mean - half > 0 else "worse" if mean + half < 0 else "no difference shown"
    score = 100 * statistics.mean(run[arm]["accuracy"] for run in runs)
    tokens = statistics.mean(run[arm]["tokens"] / run["plain"]["tokens"] for run in runs)
    spread = f"{min(differences):+.1f} to {max(differences):+.1f}"
    joined = 100 * statistics.mean(run[arm]["two_at_once"] for run in runs)
    interval = f"[{mean - half:+.1f}, {mean + half:+.1f}] {verdict}"
    return (
        f"companions {arm}: accuracy={score:.1f} difference={mean:+.1f} points {interval} "
        f"({count} seeds, {spread}; two tasks at once {joined:.1f}; tokens x{tokens:.2f})"
    )


def main() -> None:
    """Run all seeds and print one line per arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6, help="number of seeds, at least 5")
    parser.add_argument("--rows", type=int, default=2000, help="training rows")
    parser.add_argument("--steps", type=int, default=700, help="optimizer steps of every arm")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--output", type=Path, help="JSON file for all results")
    options = parser.parse_args()
    if options.seeds < 5:
        parser.error(f"--seeds {options.seeds} is too few for an interval. Use 5 or more.")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import torch
    from datasets import disable_progress_bars

    torch.set_num_threads(1)
    disable_progress_bars()
    runs = [run_seed(seed, options) for seed in range(options.seeds)]
    if options.output:
        options.output.write_text(json.dumps(runs, indent=1))
    plain = [100 * run["plain"]["accuracy"] for run in runs]
    both = 100 * statistics.mean(run["plain"]["two_at_once"] for run in runs)
    spread = f"{min(plain):.1f} to {max(plain):.1f}"
    print(f"companions plain: accuracy={statistics.mean(plain):.1f} ({spread}; two tasks at once {both:.1f})")
    for arm in ARMS[1:]:
        print(summary(arm, runs))


if __name__ == "__main__":
    main()
