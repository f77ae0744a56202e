"""Models small enough to train in minutes on a processor: one tokenizer, a distiller and students from scratch.

The architecture is that of LFM2, short convolutions and attention in turn: it starts to copy from its context after a
tenth of the steps that a plain decoder of this size takes. The tokenizer is a byte-level BPE in which every
value of the world is one token::

    "octal: 8r15."  ->  "octal" ":" " 8r15" "."
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.proof.world import values_by_base
from hf_lmmixup.encoder import has_fast_bfloat16
from hf_lmmixup.prompts import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from hf_lmmixup.tiny_distiller import CHAT_TEMPLATE, END_TOKEN, PAD_TOKEN, START_TOKEN


VOCABULARY = 1536
WORDS = r" ?[\p{L}\p{N}]+|[^\s\p{L}\p{N}]|\s"
"""A word with its digits is one piece, so that `8r15` can become one token."""
SPREAD = 0.05
"""Standard deviation of first weights: with the usual 0.02 small models take several times as
many steps until they start to copy."""
POSITIONS = 2048
CONVOLUTION = 3
"""Tokens that a short convolution sees."""
WARM_UP = 30
IGNORED = -100


def train_tokenizer(texts: Iterable[str], folder: Path) -> Any:
    """Train a tokenizer on texts and save it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD_TOKEN, START_TOKEN, END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    frequent = [f" {value}" for values in values_by_base().values() for value in values] * 200
    core.train_from_iterator([*texts, *frequent], trainer)
    tags = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        additional_special_tokens=[START_TOKEN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS,
        padding_side="left",
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_model(tokenizer: Any, *, width: int, layers: int, seed: int) -> Any:
    """A randomly initialized model for a tokenizer."""
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=2 * layers,
        layer_types=["conv", "full_attention"] * layers,
        conv_L_cache=CONVOLUTION,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=POSITIONS,
        initializer_range=SPREAD,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Lfm2ForCausalLM(config)


def endless(rows: Sequence[dict[str, Any]], rng: random.Random) -> Iterator[list[dict[str, Any]]]:
    """Rows one by one, pass after pass, each pass in a new random order."""
    while True:
        yield from ([row] for row in rng.sample(list(rows), len(rows)))


def token_batches(units: Iterable[list[dict[str, Any]]], budget: int) -> Iterator[list[dict[str, Any]]]:
    """Batches of at most `budget` tokens, so that equal tokens are equal steps whatever the length of the rows.

    Args:
        units: Rows with `ids`, in groups that stay together; endless, or what is left over at the end is lost.
        budget: Tokens of a batch; a longer group is a batch of its own.
    """
    batch: list[dict[str, Any]] = []
    size = 0
    for unit in units:
        more = sum(len(row["ids"]) for row in unit)
        if batch and size + more > budget:
            yield batch
            batch, size = [], 0
        batch += unit
        size += more


class Learner:
    """A model with its optimizer and a learning rate that rises quickly and falls to a tenth.

    Args:
        model: What learns.
        rate: Peak learning rate.
    """

    def __init__(self, model: Any, rate: float) -> None:
        import torch

        self.model, self.rate, self.steps = model, rate, 0
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.bfloat16 = has_fast_bfloat16()

    def hidden(self, ids: Any, mask: Any) -> Any:
        """Last hidden states (b, t, h)."""
        import torch

        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            return self.model.model(input_ids=ids, attention_mask=mask).last_hidden_state

    def loss(self, hidden: Any, labels: Any, weights: Any | None = None) -> Any:
        """Mean next-token loss over the labels (b, t) that are not `IGNORED`, weighted (b, t) or not."""
        import torch

        wanted = labels[:, 1:] != IGNORED
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.model.lm_head(hidden[:, :-1][wanted])
        each = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted], reduction="none")
        if weights is None:
            return each.mean()
        shares = weights[:, 1:][wanted]
        return (each * shares).sum() / shares.sum()

    def step(self, loss: Any, progress: float) -> None:
        """One optimizer step; `progress` runs from 0 to 1 over the training."""
        import torch

        self.steps += 1
        rate = self.rate * min(1.0, self.steps / WARM_UP) * (0.1 + 0.9 * (1 - min(1.0, progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def padded(rows: Sequence[Sequence[int]], fill: int) -> Any:
    """Rows of token ids as one right-padded tensor (b, t)."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
