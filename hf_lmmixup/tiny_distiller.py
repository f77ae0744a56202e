"""A distiller small enough to train on a laptop's processor: Qwen2 architecture, about 1.3 million parameters.

It is built from texts alone. A byte-level BPE tokenizer is trained on them, the weights are drawn from a seed, two of
the first layer's heads are aimed at labels (`label_heads`), and the model may then read documents as plain prose,
without prompts or tags: what a distiller of the usual size brings along from its pretraining. Its purpose is to show,
offline and in minutes, that every step of the job is real. It learns the *form* of a distillation; for knowledge, name
a pretrained model in the recipe instead.

The chat template is the plain one that Qwen models use: `<|im_start|>role`, the content, `<|im_end|>`; `<|im_end|>`
is the end-of-sequence token, so a model trained on completions learns to stop.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lmmixup.encoder import has_fast_bfloat16
from hf_lmmixup.label_heads import LabelHeads
from hf_lmmixup.prompts import (
    ANSWER_LABELS,
    SYSTEM_PROMPT,
    TAGS,
    TASK_INSTRUCTIONS,
    distillation_messages,
    format_completion,
    linearize,
)


VOCABULARY_SIZE = 2048
HIDDEN_SIZE = 192
LAYERS = 2
HEADS = 3
FEED_FORWARD_SIZE = 512
MAX_POSITIONS = 4096
ROTARY_BASE = 1e6
"""Base of the rotary positions, as in Qwen2.5."""

READING_BATCH, READING_RATE = 10, 4e-3
"""Documents a step and peak learning rate of the reading."""
WARM_UP, LAST_RATE = 20, 0.1
BETAS = (0.9, 0.98)

PAD_TOKEN, START_TOKEN, END_TOKEN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

LABELS = sorted({label for labels in ANSWER_LABELS.values() for label in labels})

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tiny_distiller(
    path: str | Path,
    texts: Iterable[str],
    *,
    documents: Sequence[Sequence[str]] = (),
    seed: int = 0,
    reading_steps: int = 200,
) -> Path:
    """Train a tokenizer, draw the weights of a small Qwen2 model, let it read, and save both as one model folder.

    Args:
        path: The folder to write; `AutoModelForCausalLM.from_pretrained(path)` loads it.
        texts: What the tokenizer shall compress well, usually prompts and completions.
        documents: Groups of related texts to read; without any, the weights stay as they were drawn.
        seed: Seed of weights and reading; the global random state is left as it was.
        reading_steps: Optimizer steps of the reading.

    Returns:
        The folder.

    Raises:
        ImportError: If the `train` extra is missing.
        FileExistsError: If there is a file where the folder shall be.
    """
    try:
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM
    except ImportError as error:
        raise ImportError('Building a model needs torch: pip install "hf-lmmixup[train]".') from error
    Path(path).mkdir(parents=True, exist_ok=True)  # before the minutes that follow
    tokenizer = _train_tokenizer([SYSTEM_PROMPT, *TASK_INSTRUCTIONS.values(), *texts])
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=FEED_FORWARD_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
        labels = tokenizer.convert_tokens_to_ids([START_TOKEN, *TAGS, *LABELS])
        heads = LabelHeads(model, labels, ROTARY_BASE)
    if documents:
        _read(model, heads, tokenizer, documents, reading_steps, random.Random(seed))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Path(path)


def cluster_texts(clusters: Iterable[Mapping[str, Any]]) -> list[str]:
    """The texts of MIXTURE clusters as the distiller meets them: prompt and completion of each cluster."""
    texts = []
    for cluster in clusters:
        messages = distillation_messages(cluster["sources"], cluster["task_type"])
        texts += [messages[-1]["content"], format_completion(cluster["reasoning"], cluster["target"])]
    return texts


def _read(
    model: Any,
    heads: LabelHeads,
    tokenizer: Any,
    documents: Sequence[Sequence[str]],
    steps: int,
    rng: random.Random,
) -> None:
    """Next-token prediction on documents whose texts stand in a new random order each time."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=READING_RATE, betas=BETAS)
    model.train()
    for step in range(1, steps + 1):
        rate = min(step / WARM_UP, LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = READING_RATE * rate
        chosen = rng.sample(list(documents), min(READING_BATCH, len(documents)))
        pages = [linearize(rng.sample(list(document), len(document))) for document in chosen]
        batch = tokenizer(pages, padding=True, padding_side="right", return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_fast_bfloat16()):
            loss = model(input_ids=batch["input_ids"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        heads.aim()
    model.eval()


def _train_tokenizer(texts: Sequence[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    # Tags and labels are whole tokens, so that the form of a completion takes few decisions. They are not special
    # ones: special tokens vanish when a trainer decodes completions.
    tags = [*TAGS, *LABELS]
    special = [PAD_TOKEN, START_TOKEN, END_TOKEN]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(tags),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_without_tags(texts, tags), trainer)
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        additional_special_tokens=[START_TOKEN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        padding_side="left",
    )


def _without_tags(texts: Iterable[str], tags: Sequence[str]) -> Iterable[str]:
    for text in texts:
        for tag in tags:
            text = text.replace(tag, " ")
        yield text
