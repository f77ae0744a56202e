"""The proof's distiller: it reads, then gets a cold start by `trl sft` and GRPO by `trl grpo`.

What a pretrained model brings along, copying from its context, a model from scratch has to learn first: it reads
short documents about characters that no student is asked about, most of them invented. Both trainings then go through
`hf_lmmixup.training.train`, that is TRL's command line, with the package's prompts and rewards.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from benchmarks.proof.models import IGNORED, Learner, padded, tiny_model
from benchmarks.proof.noise import row_text, weak_row
from benchmarks.proof.teaching import grpo_row, sft_row, tidy_row
from benchmarks.proof.world import QUESTIONS, Character
from hf_lmmixup.encoder import has_fast_bfloat16
from hf_lmmixup.prompts import linearize
from hf_lmmixup.training import train


HERE = Path(__file__).parent
READING_BATCH, READING_RATE = 16, 3e-3
DOCUMENTS = 6000
COMMON, COMMON_WEIGHT = 0.1, 0.2
"""Tokens in more than this share of the documents weigh this much: the words of the questions are soon known, the
names and values are what has to be copied."""


def untrained(folder: Path, tokenizer: Any, *, width: int, layers: int, seed: int) -> Path:
    """Save a distiller with random weights: where training starts, and a control."""
    tiny_model(tokenizer, width=width, layers=layers, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def documents(characters: Sequence[Character], count: int, seed: int) -> list[str]:
    """Short documents, each about one character: questions alone, then tidy and right pairs, then weak ones.

    What repeats in the first third are names, in the second values, in the last both, among slips.
    """
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        character, part = rng.choice(characters), 3 * number // count
        if part == 0:
            rows = [question.format(character.name) for question in rng.sample(QUESTIONS, 5)]
        elif part == 1:
            rows = [row_text(tidy_row(character, rng)) for _ in range(3)]
        else:
            rows = [row_text(weak_row(character, characters, rng)) for _ in range(6)]
        texts.append(linearize(rows))
    return texts


def read(folder: Path, target: Path, tokenizer: Any, texts: Sequence[str], *, steps: int, seed: int) -> Path:
    """Let a model read documents, more and more of them, and save it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    weights = _weights(rows, len(tokenizer))
    learner, rng = Learner(model.train(), READING_RATE), random.Random(seed)
    for step in range(steps):
        part = rows[: max(READING_BATCH, math.ceil(3 * (step + 1) / steps) * len(rows) // 3)]
        ids = padded(rng.sample(part, READING_BATCH), tokenizer.pad_token_id)
        mask = (ids != tokenizer.pad_token_id).long()
        labels = ids.masked_fill(mask == 0, IGNORED)
        learner.step(learner.loss(learner.hidden(ids, mask), labels, weights[ids]), step / steps)
    model.eval().save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def _weights(rows: Sequence[Sequence[int]], vocabulary: int) -> Any:
    """The weight of each token id (v,)."""
    import torch

    seen = Counter(token for row in rows for token in set(row))
    common = [seen[token] > COMMON * len(rows) for token in range(vocabulary)]
    return torch.where(torch.tensor(common), COMMON_WEIGHT, 1.0)


def cold_start(model: Path, target: Path, clusters: Sequence[dict[str, Any]], *, steps: int, seed: int) -> Path:
    """Fine-tune on clusters and their targets by `trl sft`."""
    return _trl("sft", model, target, Dataset.from_list([sft_row(cluster) for cluster in clusters]), steps, seed, {})


def reinforce(
    model: Path, target: Path, clusters: Sequence[dict[str, Any]], datastore: Path, *, steps: int, seed: int
) -> Path:
    """Train on the rewards by `trl grpo`; the quality reward asks the datastore."""
    rows = Dataset.from_list([grpo_row(cluster) for cluster in clusters])
    environment = {"HF_LMMIXUP_DATASTORE": str(datastore)}
    return _trl("grpo", model, target, rows, steps, seed, environment)


def _trl(
    method: str, model: Path, target: Path, rows: Dataset, steps: int, seed: int, environment: dict[str, str]
) -> Path:
    data = target.with_name(f"{target.name}_data")
    data.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(str(data / "train.parquet"))
    overrides: dict[str, Any] = {
        "model_name_or_path": str(model),
        "dataset_name": str(data),
        "max_steps": steps,
        "seed": seed,
        "save_steps": min(steps, 200 if method == "sft" else 50),
    }
    if method == "sft" and not has_fast_bfloat16():
        overrides["bf16"] = False
    return train(method, HERE / f"{method}.yaml", overrides, target, environment=environment).model
