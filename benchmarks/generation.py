"""Useful tokens a second of `LocalGenerator` against batches of 16 in order of arrival run until the longest ends.

    python benchmarks/generation.py [--rows 160] [--rounds 3] [--batch-size 32] [--model FOLDER] [--dtype float32]

Prompts are clusters of the bundled mini MIXTURE with lognormal sizes; each row ends after a lognormal number of
tokens, independent of its prompt and the same for both sides. Without `--model` it builds the quickstart's tiny
distiller; its weights are drawn wider than for training, so that the text varies instead of repeating one token. The
greedy texts of both sides are compared. The last line is the result; processor seconds are printed beside the wall
clock because a shared machine disturbs only the latter.

Also printed, for the device at hand: the paged scheduler of `transformers` (`generate_batch`), how far the logits of a
row alone and in a batch are apart (what `TIE_MARGIN` must cover), and how many tokens were settled alone.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from hf_lmmixup.batch_state import BatchState
from hf_lmmixup.bundled import read_mini
from hf_lmmixup.generation import TIE_MARGIN, LocalGenerator, Row
from hf_lmmixup.paged_generation import PagedGenerator
from hf_lmmixup.prompts import Messages, distillation_messages, prompt_tokens, until_answer_ends
from hf_lmmixup.tiny_distiller import build_tiny_distiller


TARGET = 1.8
BASELINE_BATCH = 16
WIDER = 6.0
"""Factor on the tiny model's layer weights; at 1 an untrained model repeats its last token."""


class RaggedGenerator(LocalGenerator):
    """Ends each row after its own number of tokens, and only there."""

    lengths: Sequence[int] = ()

    def _write(self, waiting: list[Row], take: Callable[[int, str | None], None]) -> None:
        self._ends = self._closers = frozenset()
        for row in waiting:
            row.limit = self.lengths[row.place]
        super()._write(waiting, take)


class RaggedPagedGenerator(RaggedGenerator, PagedGenerator):
    """The same on the paged scheduler."""


class RowsAreLong(StoppingCriteria):
    """The baseline's rows end after the same numbers of tokens."""

    def __init__(self, lengths: Sequence[int], start: int, device: torch.device) -> None:
        self.lengths, self.start = torch.tensor(lengths, device=device), start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **arguments: Any) -> torch.Tensor:
        """Which rows are done (rows,)."""
        return input_ids.shape[1] - self.start >= self.lengths


def arrival_order(generator: LocalGenerator, conversations: Sequence[Messages], lengths: Sequence[int]) -> list[str]:
    """The baseline: `transformers` generates batch after batch, each until its longest row ends."""
    tokenizer, model, texts = generator.tokenizer, generator.model, []
    for first in range(0, len(conversations), BASELINE_BATCH):
        batch, ends = conversations[first : first + BASELINE_BATCH], lengths[first : first + BASELINE_BATCH]
        prompts = [tokenizer.apply_chat_template(list(m), add_generation_prompt=True, tokenize=False) for m in batch]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        start = inputs["input_ids"].shape[1]
        written = model.generate(
            **inputs.to(model.device),
            do_sample=False,
            max_new_tokens=max(ends),
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            stopping_criteria=StoppingCriteriaList([RowsAreLong(ends, start, model.device)]),
        )
        decoded = [tokenizer.decode(row[start : start + end]) for row, end in zip(written, ends, strict=True)]
        # The generator hands on nothing after the end of an answer, should this text happen to have one.
        texts += map(until_answer_ends, decoded)
    return texts


def workload(rows: int, seed: int) -> tuple[list[Messages], list[int]]:
    """Prompts and output lengths, both lognormal."""
    rng = np.random.default_rng(seed)
    weak = [weak["text"] for cluster in read_mini("qa") for weak in cluster["weak"]]
    sizes = np.clip(np.round(rng.lognormal(np.log(3), 0.6, rows)), 1, 12).astype(int)
    conversations = [distillation_messages([weak[i] for i in rng.integers(0, len(weak), size)]) for size in sizes]
    lengths = np.clip(np.round(rng.lognormal(np.log(60), 0.9, rows)), 4, 400).astype(int)
    return conversations, lengths.tolist()


def widen(model: Any) -> None:
    """Scale the layers of an untrained model so that its text varies."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "layers" in name and weights.ndim == 2:
                weights.mul_(WIDER)


def noise(generator: LocalGenerator, conversations: Sequence[Messages]) -> float:
    """The largest difference between the logits of a row alone and in a padded batch, as a share of the largest."""
    tokens = [prompt_tokens(generator.tokenizer, messages) for messages in conversations[:BASELINE_BATCH]]
    with torch.inference_mode():
        together, _ = BatchState.read(generator.model, tokens)
        alone = torch.cat([BatchState.read(generator.model, [row])[0] for row in tokens])
    return float(((together - alone).abs().amax(1) / alone.abs().amax(1)).max())


def main() -> None:
    """Measure both sides in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--model", help="a model folder or Hub id instead of the tiny distiller")
    parser.add_argument("--dtype", choices=list(TIE_MARGIN))
    parser.add_argument("--no-paged", action="store_true", help="leave the paged scheduler out")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    conversations, lengths = workload(options.rows, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or build_tiny_distiller(folder, [messages[-1]["content"] for messages in conversations])
        settings = {"batch_size": options.batch_size, "max_new_tokens": max(lengths), "dtype": options.dtype}
        generator, paged = RaggedGenerator(path, **settings), RaggedPagedGenerator(path, **settings)
    generator.lengths = paged.lengths = lengths
    if options.model is None:
        widen(generator.model)
        widen(paged.model)
    measure(generator, None if options.no_paged else paged, conversations, lengths, options.rounds)


def measure(
    generator: RaggedGenerator,
    paged: RaggedPagedGenerator | None,
    conversations: Sequence[Messages],
    lengths: Sequence[int],
    rounds: int,
) -> None:
    """Time the sides in turn and print what came out."""
    ratios, agreed = [], []
    for number in range(1, rounds + 1):
        wall, cpu = [time.perf_counter()], [time.process_time()]
        baseline = arrival_order(generator, conversations, lengths)
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
        texts = generator.generate(conversations)
        wall.append(time.perf_counter())
        cpu.append(time.process_time())
        slow, fast = np.diff(wall)
        ratios.append(slow / fast)
        agreed.append(_same(texts, baseline))
        print(f"round {number}: {sum(lengths) / slow:.0f} and {sum(lengths) / fast:.0f} useful tokens/s, ", end="")
        print(f"processor time ratio {np.divide(*np.diff(cpu)):.2f}, {agreed[-1]} of {len(texts)} texts identical")
    print(f"{generator.device}, {torch.get_num_threads()} threads, batches of {generator.batch_size}, ", end="")
    print(f"{sum(lengths)} tokens in {len(texts)} rows, {generator.settled / rounds:.0f} tokens a round settled alone")
    apart = noise(generator, conversations)
    print(f"logits alone and in a batch differ by up to {apart:.1e} of the largest one, margin {generator.margin:.0e}")
    if paged is not None:
        started = time.perf_counter()
        same = _same(paged.generate(conversations), texts)
        rate = sum(lengths) / (time.perf_counter() - started)
        print(f"paged scheduler: {rate:.0f} useful tokens/s, {same} of {len(texts)} texts identical")
    ratio = statistics.median(ratios)
    verdict = "ok" if ratio >= TARGET and min(agreed) == len(texts) else "short"
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    print(f"generation: ratio={ratio:.2f} target={TARGET} {verdict} (median of {rounds}, spread {spread})")


def _same(texts: Sequence[str | None], others: Sequence[str | None]) -> int:
    return sum(a == b for a, b in zip(texts, others, strict=True))


if __name__ == "__main__":
    main()
