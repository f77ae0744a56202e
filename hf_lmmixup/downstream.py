"""What a fine-tuned model has learned: scores of single test rows, higher is better.

A metric is any function `(model, rows) -> list[float | None]`, named by its dotted path; three are here::

    likelihood("models/a", [{"prompt": "Why do tides occur?", "completion": "The Moon pulls the sea."}])  ->  [-1.84]
    exact_match(...)  ->  [0.0]        rouge(...)  ->  [0.31]

They need one score a row, not one number, so that models can be compared row by row.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_lmmixup.lm_eval_tasks.questions import final
from hf_lmmixup.overlap import check_rouge, rouge_l


MAX_LENGTH = 1024
MAX_NEW_TOKENS = 256

Row = dict[str, Any]
Scores = list[float | None]
Metric = Callable[[str, Sequence[Row]], Scores]


def find_metric(name: str) -> tuple[str, Metric]:
    """A metric by name or dotted path, and what it is called; modules of the current folder are found, too.

    Raises:
        ValueError: If there is none.
        ImportError: If it is ROUGE-L and the `report` extra is missing.
    """
    own: dict[str, Metric] = {"likelihood": likelihood, "exact_match": exact_match, "rouge": rouge}
    if name == "rouge":
        check_rouge()
    if name in own:
        return name, own[name]
    module, _, function = name.rpartition(".")
    if module and str(Path.cwd()) not in sys.path:  # a console script does not look there, `trl` does
        sys.path.append(str(Path.cwd()))
    found, reason = None, ""
    try:
        found = getattr(import_module(module), function) if module else None
    except (ImportError, AttributeError) as error:
        reason = f" ({error})"
    if not callable(found):
        raise ValueError(f"No metric {name!r}{reason}. Expected one of {list(own)}, or package.module.function.")
    return function, found


def as_messages(row: Row) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """A row as turns of a conversation: the question and the answer."""
    return [{"role": "user", "content": row["prompt"]}], [{"role": "assistant", "content": row["completion"]}]


def likelihood(model: str, rows: Sequence[Row]) -> Scores:
    """Mean log-probability of the tokens of each completion, behind its prompt; `None` if none fits the window.

    Args:
        model: Folder or Hub id.
        rows: With `prompt` and `completion`.

    Returns:
        Values of 0 or less, one a row, in nats per token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    loader: Any = AutoModelForCausalLM
    network = loader.from_pretrained(model, dtype="auto").eval()
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    scores: Scores = []
    for row in rows:
        prompt, whole = tokenized(tokenizer, row)
        whole = whole[:MAX_LENGTH]
        if len(whole) <= len(prompt):
            scores.append(None)
            continue
        tokens = torch.tensor([whole], device=network.device)
        with torch.inference_mode():
            logits = network(tokens).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])
        scores.append(float(chosen.mean()))
    return scores


def exact_match(model: str, rows: Sequence[Row]) -> Scores:
    """1 where the written answer ends in the number, or is the text, that the completion ends in."""
    return [
        float(final(text) == final(row["completion"])) for text, row in zip(_written(model, rows), rows, strict=True)
    ]


def rouge(model: str, rows: Sequence[Row]) -> Scores:
    """ROUGE-L of the written answer and the completion."""
    return [rouge_l(text, row["completion"]) for text, row in zip(_written(model, rows), rows, strict=True)]


def tokenized(tokenizer: Any, row: Row) -> tuple[list[int], list[int]]:
    """Tokens of the prompt alone, and of prompt and completion, as TRL's trainer sees them."""
    if tokenizer.chat_template is None:
        prompt = tokenizer(row["prompt"])["input_ids"]
        return prompt, tokenizer(row["prompt"] + row["completion"] + (tokenizer.eos_token or ""))["input_ids"]
    asked, answered = as_messages(row)
    head = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    text = tokenizer.apply_chat_template(asked + answered, tokenize=False)
    head_tokens = tokenizer(head, add_special_tokens=False)["input_ids"]
    return head_tokens, tokenizer(text, add_special_tokens=False)["input_ids"]


def _written(model: str, rows: Sequence[Row]) -> list[str]:
    from hf_lmmixup.generation import LocalGenerator

    generator = LocalGenerator(model, max_new_tokens=MAX_NEW_TOKENS)
    return [text or "" for text in generator.generate([as_messages(row)[0] for row in rows])]
