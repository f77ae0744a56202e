"""A rater that writes nothing: the expected digit, read off the next-token probabilities of a local model.

One forward pass per row, no JSON to parse, no sampling. The part of the prompt that all rows share is computed once.

One row: the model puts 0.1 on "5", 0.5 on "6" and 0.3 on "7"; the rest is elsewhere. The reply is
`{"expected": 6.22, "mass": 0.9}`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

from hf_lmmixup.chat_model import ChatReply, ChatRequest, Message
from hf_lmmixup.generation import halved


DIGITS = range(1, 10)

BATCH_SIZE = 32

SORTED_BATCHES = 16
"""Batches that are read ahead and sorted by length, so that rows of one batch need little padding."""

DECIMALS = 2
"""Of an expected digit."""

NOISE = {"float32": 1e-4, "bfloat16": 0.0, "float16": 0.0}
"""How far the expected digit may move with the rows around it in a batch. Closer to a rounding border than this, a row
is computed once more alone, so that batches do not change what is written. Half precision moves it by some hundredths;
settling that would mean a pass for each row, so there a few scores may depend on the batch."""

REUSE_SHARE = 0.8
"""The state kept from an earlier batch serves another one if it covers this share of what that one has in common."""


class DigitModel:
    """A causal language model of `transformers` that answers with the expected digit; for the rubric `ONE_DIGIT`.

    Args:
        model_path: Folder or Hub id of a model whose tokenizer has a chat template.
        device: Torch device; `None` takes a GPU if there is one.
        dtype: `float32`, `bfloat16` or `float16`; `None` means float32 on a CPU and bfloat16 on a GPU.
        batch_size: Rows in one forward pass; halved when memory runs out.
        revision: Hub revision.

    Raises:
        ImportError: If the `train` extra is missing.
        ValueError: If the dtype is unknown, or the tokenizer has no chat template or no tokens for digits.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = BATCH_SIZE,
        revision: str | None = None,
    ) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise ImportError('Rating with a local model needs torch: pip install "hf-lmmixup[train]".') from error
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        if dtype not in NOISE:
            raise ValueError(f"Unknown dtype {dtype!r}. Expected one of {list(NOISE)}.")
        self.name, self.batch_size, self.noise = str(model_path), batch_size, NOISE[dtype]
        self.settings = {"model": self.name, "revision": revision, "dtype": dtype}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_path, revision=revision)
        if self.tokenizer.chat_template is None:
            raise ValueError(f"The tokenizer of {self.name!r} has no chat template; take an instruct model.")
        self.digits = digit_tokens(self.tokenizer)
        loader: Any = AutoModelForCausalLM
        self.model = loader.from_pretrained(model_path, revision=revision, dtype=dtype).to(device).eval()
        self.longest = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        self._shared: tuple[list[int], Any] = ([], None)

    def replies(self, requests: Iterable[ChatRequest], stop: Event | None = None) -> Iterator[ChatReply]:
        """Answer requests with `{"expected": ..., "mass": ...}`; see `ChatModel.replies`."""
        pulled = iter(requests)
        while not (stop and stop.is_set()) and (some := list(islice(pulled, SORTED_BATCHES * self.batch_size))):
            rows = sorted(((self._tokens(request.messages), request.key) for request in some), key=_by_length)
            while rows and len(rows[-1][0]) > self.longest:
                yield ChatReply(rows.pop()[1], error="longer than the model's window", answered=False)
            while rows and not (stop and stop.is_set()):  # the longest first: if memory is short, that shows at once
                batch = rows[-self.batch_size :]
                try:
                    judged = self._judged([tokens for tokens, _ in batch])
                except RuntimeError as error:
                    self.batch_size = halved(self.batch_size, error)
                    continue
                del rows[-len(batch) :]
                for (_, key), (expected, mass) in zip(batch, judged, strict=True):
                    yield ChatReply(key, json.dumps({"expected": expected, "mass": mass}))

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        text = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _judged(self, texts: Sequence[list[int]]) -> list[tuple[float, float]]:
        """Expected digit and probability mass on digits of each text."""
        judged = []
        for text, (expected, mass) in zip(texts, self._expected(texts, shared=True), strict=True):
            if _near_border(expected, self.noise) or _near_border(mass, self.noise):
                ((expected, mass),) = self._expected([text], shared=False)
            judged.append((round(expected, DECIMALS), round(mass, DECIMALS)))
        return judged

    def _expected(self, texts: Sequence[list[int]], *, shared: bool) -> list[tuple[float, float]]:
        import torch

        with torch.inference_mode():
            logits = self._logits(texts, self._read_before(texts) if shared else [])
            probabilities = logits.double().softmax(-1)
            digits = torch.stack([probabilities[:, tokens].sum(-1) for tokens in self.digits], dim=1)
            mass = digits.sum(-1)
            values = torch.tensor(list(DIGITS), dtype=digits.dtype, device=digits.device)
            expected = (digits @ values) / mass.clamp(min=1e-30)
        # With next to no mass the quotient means nothing; the reader of the reply refuses such a row by its mass.
        return list(zip(expected.clamp(1, 9).tolist(), mass.clamp(0, 1).tolist(), strict=True))

    def _logits(self, texts: Sequence[list[int]], prefix: list[int]) -> Any:
        """Logits after each text (rows, vocabulary); all begin with `prefix`, whose state is computed once."""
        import copy

        import torch

        device, start = self.model.device, len(prefix)
        cache = None
        if prefix:
            cache = copy.deepcopy(self._shared[1])
            cache.batch_repeat_interleave(len(texts))
        longest = max(map(len, texts)) - start
        padding = [longest - (len(text) - start) for text in texts]
        padded = [[0] * pad + text[start:] for pad, text in zip(padding, texts, strict=True)]
        places = torch.arange(longest, device=device) - torch.tensor(padding, device=device)[:, None]
        mask = torch.nn.functional.pad((places >= 0).long(), (start, 0), value=1)
        output = self.model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=mask,
            position_ids=start + places.clamp(min=0),
            past_key_values=cache,
            use_cache=start > 0,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _read_before(self, texts: Sequence[list[int]]) -> list[int]:
        """The beginning of all texts whose state is kept in `_shared`, computed now if need be."""
        import torch

        known, start = self._shared[0], common_start(texts)
        if known != texts[0][: len(known)] or not REUSE_SHARE * start <= len(known) <= start:
            known = texts[0][:start]
            tokens = torch.tensor([known], device=self.model.device)
            state = self.model(tokens, use_cache=True, logits_to_keep=1).past_key_values if known else None
            self._shared = (known, state)
        return known


def digit_tokens(tokenizer: Any) -> list[list[int]]:
    """For each of the digits 1 to 9 the tokens that write it, with whatever spaces around it.

    Raises:
        ValueError: If a digit has no token of its own.
    """
    found: dict[str, list[int]] = {str(digit): [] for digit in DIGITS}
    for token, number in tokenizer.get_vocab().items():
        if any(character.isdecimal() for character in token):
            written = tokenizer.decode([number]).strip()
            if written in found:
                found[written].append(number)
    if not all(found.values()):
        raise ValueError(f"The tokenizer of {tokenizer.name_or_path!r} has no token for a single digit.")
    return [sorted(numbers) for numbers in found.values()]


def common_start(texts: Sequence[list[int]]) -> int:
    """How many leading tokens all texts share, at least one token of each left over; 0 for a single text."""
    if len(texts) < 2:
        return 0
    first, last = min(texts), max(texts)
    limit = min(map(len, texts)) - 1
    return next((place for place in range(limit) if first[place] != last[place]), limit)


def _by_length(row: tuple[list[int], str]) -> tuple[int, str]:
    return len(row[0]), row[1]


def _near_border(value: float, noise: float) -> bool:
    scaled = value * 10**DECIMALS
    return abs(scaled % 1 - 0.5) < noise * 10**DECIMALS
