"""Greedy text from the proof's distiller, by `generate` of transformers.

`LocalGenerator` keeps a memory of its own for batches that grow and shrink; that of LFM2's convolutions is not part of
it. `distill` takes any function from conversations to replies. One reply::

    <think>What most of the texts say.</think>
    <answer>Q: Last digits of pineapple
    A: octal 8r15, septenary 7r41, decimal 10r21, nonary 9r03.</answer>
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


BATCH = 32
MAX_NEW_TOKENS = 72


class Writer:
    """A model folder that answers conversations.

    Args:
        model: The folder.
    """

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.max_prompt_tokens = self.model.config.max_position_embeddings - MAX_NEW_TOKENS

    def count_tokens(self, messages: Sequence[dict[str, str]]) -> int:
        """Length of a prompt in tokens."""
        return len(self.tokenizer(self._prompt(messages), add_special_tokens=False)["input_ids"])

    def generate(
        self,
        conversations: Sequence[Sequence[dict[str, str]]],
        *,
        seeds: Sequence[int] | None = None,
        on_reply: Callable[[int, str | None], None] | None = None,
    ) -> list[str | None]:
        """The likeliest reply to each conversation; the seeds are not needed for that."""
        import torch

        prompts = [self._prompt(messages) for messages in conversations]
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        replies: list[str | None] = [None] * len(prompts)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            inputs = self.tokenizer(
                [prompts[place] for place in places], padding=True, add_special_tokens=False, return_tensors="pt"
            )
            asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            with torch.inference_mode():
                written = self.model.generate(**asked, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            for place, tokens in zip(places, written[:, asked["input_ids"].shape[1] :], strict=True):
                text = self.tokenizer.decode(tokens, skip_special_tokens=False)
                replies[place] = text.partition(self.tokenizer.eos_token)[0].strip()
                if on_reply is not None:
                    on_reply(place, replies[place])
        return replies

    def _prompt(self, messages: Sequence[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
