r"""Batched text generation with a local model, whose output does not depend on how the rows were batched.

Rows are sorted by length and left-padded; a row leaves the batch when it is done and waiting rows take the free
places, so no step is spent on finished text. One call::

    LocalGenerator("quickstart/distiller").generate([[{"role": "user", "content": "Merge: ..."}]])
    ->  ["<think>Both ask about tides.</think>\n<answer>Q: What causes tides?\nA: Mostly the Moon.</answer>"]

**Same bytes for any batch size and order.** Floating-point sums depend on the shape of a batch, so two tokens with
nearly the same logit can change places when the neighbors change. Where the best two are closer than `TIE_MARGIN`,
which is far above that noise, the row is computed once more alone, without padding or cache, and that computation
decides: what is written is what a batch of one without a cache writes. The same holds for sampled text, where each row
adds Gumbel noise from its own seed and takes the largest sum.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_lmmixup.batch_state import BatchState
from hf_lmmixup.bounds import LOCAL_MODEL, check
from hf_lmmixup.prompts import ANSWER_CLOSE, Messages, prompt_room, prompt_tokens, until_answer_ends
from hf_lmmixup.token_choice import gumbel_noise, without_repeats


logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 2400
"""Longest completion (arXiv 2510.20449, code: `max_new_tokens` of the downstream distillation)."""

TEMPERATURE = 0.7
"""For rows that are asked again with a seed; the first try is greedy."""

TIE_MARGIN = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}
"""Scores closer than this share of the largest one are settled alone; benchmarks/generation.py measures the noise."""

_STOP_WINDOW = 16
"""Tokens of the tail in which the stop text is looked for; no tokenizer spells it in more."""

OUT_OF_MEMORY = ("out of memory", "out_of", "alloc")
"""What errors of torch and its libraries say when memory runs out, in lower case."""

REFILL = 4
"""Waiting rows are taken in when this part of the places is free: reading them one by one would cost a pass each."""


@dataclass
class Row:
    """One text being written: its place among those asked, its prompt, the most tokens it may get, its seed."""

    place: int
    prompt: list[int]
    limit: int
    seed: int | None
    written: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """All that the model has read of this row."""
        return self.prompt + self.written


def opened(loader: Any, model: str | Path, **options: Any) -> Any:
    """What a class of `transformers` reads from a model.

    Raises:
        FileNotFoundError: If there is no such model.
    """
    try:
        return loader.from_pretrained(model, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"No model can be read from {str(model)!r}. Expected a folder with config.json and tokenizer, or a Hub id "
            f"({str(error).splitlines()[0]})."
        ) from error


class LocalGenerator:
    """A chat model of `transformers` on this machine.

    Args:
        model_path: Folder or Hub id of a causal language model whose tokenizer has a chat template.
        device: Torch device; `None` takes a GPU if there is one.
        batch_size: Rows that are written at the same time; halved when memory runs out.
        max_new_tokens: Longest completion, in tokens.
        max_prompt_tokens: Longest prompt; `None` means what the model's positions leave beside `max_new_tokens`.
        temperature: For calls with seeds.
        no_repeat_ngram_size: No run of so many tokens is written twice in one completion; 0 allows it. What the
            prompt says may be said again. Small models need it, which else go round in circles.
        dtype: `float32`, `bfloat16` or `float16`; `None` means float32 on a CPU and bfloat16 on a GPU.
        revision: Hub revision.

    Attributes:
        name: The model's name, for lineage.

    Raises:
        ImportError: If the `train` extra is missing.
        FileNotFoundError: If there is no such model.
        ValueError: If the tokenizer has no chat template or the model keeps a state that cannot be batched.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        device: str | None = None,
        batch_size: int = 32,
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_prompt_tokens: int | None = None,
        temperature: float = TEMPERATURE,
        no_repeat_ngram_size: int = 0,
        dtype: str | None = None,
        revision: str | None = None,
    ) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise ImportError('Writing with a local model needs torch: pip install "hf-lmmixup[train]".') from error
        check(LOCAL_MODEL, {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "temperature": temperature})
        check(LOCAL_MODEL, {"no_repeat_ngram_size": no_repeat_ngram_size})
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or ("float32" if self.device == "cpu" else "bfloat16")
        if dtype not in TIE_MARGIN:
            raise ValueError(f"Unknown dtype {dtype!r}. Expected one of {list(TIE_MARGIN)}.")
        self.name = str(model_path)
        self.batch_size, self.max_new_tokens, self.temperature = batch_size, max_new_tokens, temperature
        self.no_repeat_ngram_size = no_repeat_ngram_size
        self.margin = TIE_MARGIN[dtype]
        self.tokenizer = opened(AutoTokenizer, model_path, revision=revision)
        if self.tokenizer.chat_template is None:
            raise ValueError(f"The tokenizer of {self.name!r} has no chat template; take an instruct model.")
        model = opened(AutoModelForCausalLM, model_path, revision=revision, dtype=dtype)
        self.model = model.to(self.device).eval()
        layers = getattr(self.model.config, "layer_types", None) or ()
        if getattr(self.model, "_is_stateful", False) or any("attention" not in kind for kind in layers):
            raise ValueError(f"{self.name!r} is a recurrent model; serve it and use its endpoint instead.")
        positions = getattr(self.model.config, "max_position_embeddings", None)
        self.max_prompt_tokens = prompt_room(positions, max_new_tokens, max_prompt_tokens)
        self._ends = _end_tokens(self.model, self.tokenizer)
        self._closers = _tokens_with(self.tokenizer, ANSWER_CLOSE[-1])
        self.settled = 0

    def count_tokens(self, messages: Messages) -> int:
        """Length of a prompt, in tokens, with the chat template around it."""
        return len(prompt_tokens(self.tokenizer, messages))

    def generate(
        self,
        conversations: Sequence[Messages],
        *,
        seeds: Sequence[int] | None = None,
        on_reply: Callable[[int, str | None], None] | None = None,
    ) -> list[str | None]:
        """Write one completion for each conversation.

        Args:
            conversations: Lists of messages with `role` and `content`.
            seeds: One seed a conversation: sampled text. `None`: greedy text.
            on_reply: Called with the place and the completion of each row as soon as it is done.

        Returns:
            The completions up to and with `</answer>`, in the order asked; `None` for a prompt that is longer than
            `max_prompt_tokens` (prompts are never cut; the number of such rows is logged).

        Raises:
            ValueError: If the numbers of seeds and conversations differ, or the chat template refuses the messages.
        """
        if seeds is not None and len(seeds) != len(conversations):
            raise ValueError(f"{len(seeds)} seeds for {len(conversations)} conversations; give one each.")
        prompts = [prompt_tokens(self.tokenizer, messages) for messages in conversations]
        rows = [
            Row(place, prompt, self.max_new_tokens, None if seeds is None else seeds[place])
            for place, prompt in enumerate(prompts)
        ]
        fitting = [row for row in rows if len(row.prompt) <= self.max_prompt_tokens]
        replies: list[str | None] = [None] * len(rows)

        def take(place: int, text: str | None) -> None:
            replies[place] = text
            if on_reply is not None:
                on_reply(place, text)

        for row in rows:
            if len(row.prompt) > self.max_prompt_tokens:
                take(row.place, None)
        if len(fitting) < len(rows):
            long, told = len(rows) - len(fitting), "%d of %d prompts are longer than %d tokens and get no completion."
            logger.warning(told, long, len(rows), self.max_prompt_tokens)
        # Taken from the end, so the longest come first: if memory is short, that shows at once.
        self._write(sorted(fitting, key=lambda row: (len(row.prompt), row.place)), take)
        return replies

    def _write(self, waiting: list[Row], take: Callable[[int, str | None], None]) -> None:
        """Write rows until none waits, taking the longest first from the end of `waiting`."""
        import torch

        with torch.inference_mode():
            self._write_in_batches(waiting, take)

    def _write_in_batches(self, waiting: list[Row], take: Callable[[int, str | None], None]) -> None:
        active: list[Row] = []
        state: BatchState | None = None
        while waiting or active:
            free = self.batch_size - len(active)
            coming = waiting[-free:] if free >= max(1, self.batch_size // REFILL) or not active else []
            try:
                tokens, state = self._next(coming, active, state)
            except RuntimeError as error:
                self.batch_size = halved(self.batch_size, error)
                waiting, active, state = waiting + active, [], None
                continue
            del waiting[len(waiting) - len(coming) :]
            for row, token in zip(coming or active, tokens, strict=True):
                row.written.append(token)
            active += coming
            kept = [i for i, row in enumerate(active) if not self._is_done(row)]
            if len(kept) < len(active):
                for i in sorted(set(range(len(active))).difference(kept)):
                    take(active[i].place, self._text(active[i]))
                order = state.keep(kept) if state and kept else []
                active, state = [active[i] for i in order], state if kept else None

    def _next(self, coming: list[Row], active: list[Row], state: Any) -> tuple[list[int], Any]:
        """The next tokens, and the state behind them; what the loop named instead would outlive a lack of memory."""
        if coming:
            logits, fresh = BatchState.read(self.model, [row.tokens for row in coming])
            state = state.joined(fresh) if state else fresh
        else:
            logits = state.step(self.model, [row.written[-1] for row in active])
        return self._choose(coming or active, logits), state

    def _choose(self, rows: Sequence[Row], logits: Any) -> list[int]:
        """The next token of each row; `logits` is (rows, vocabulary)."""
        noise = None if rows[0].seed is None else self._noise(rows, logits)
        scores = self._scores(logits, noise)
        margins = self.margin * scores.abs().amax(dim=-1)
        allowed = without_repeats(scores, [row.written for row in rows], self.no_repeat_ngram_size)
        best, tokens = allowed.topk(2, dim=-1)
        close = best[:, 0] - best[:, 1] < margins
        chosen = tokens[:, 0].tolist()
        for i in close.nonzero().flatten().tolist():
            self.settled += 1
            alone, _ = BatchState.read(self.model, [rows[i].tokens])
            own = self._scores(alone, None if noise is None else noise[i : i + 1])
            chosen[i] = int(without_repeats(own, [rows[i].written], self.no_repeat_ngram_size).argmax())
        return chosen

    def _noise(self, rows: Sequence[Row], logits: Any) -> Any:
        import torch

        drawn = gumbel_noise([row.seed or 0 for row in rows], [len(row.written) for row in rows], logits.shape[1])
        return torch.from_numpy(drawn).to(logits.device)

    def _scores(self, logits: Any, noise: Any) -> Any:
        return logits if noise is None else logits / self.temperature + noise

    def _is_done(self, row: Row) -> bool:
        last = row.written[-1]
        if last in self._ends or len(row.written) >= row.limit:
            return True
        return last in self._closers and ANSWER_CLOSE in self._decoded(row.written[-_STOP_WINDOW:])

    def _text(self, row: Row) -> str:
        ended = bool(row.written) and row.written[-1] in self._ends
        return until_answer_ends(self._decoded(row.written[:-1] if ended else row.written))

    def _decoded(self, tokens: Sequence[int]) -> str:
        # Special tokens stay: some tokenizers make special tokens of the tags.
        return self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def halved(batch_size: int, error: RuntimeError) -> int:
    """Half a batch after running out of memory; any other error is raised again."""
    if not any(word in str(error).lower() for word in OUT_OF_MEMORY) or batch_size == 1:
        raise error
    logger.warning("Out of memory: going on with batches of %d.", batch_size // 2)
    return batch_size // 2


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    named = model.generation_config.eos_token_id
    ends = named if isinstance(named, list) else [named]
    return frozenset(token for token in [*ends, tokenizer.eos_token_id] if token is not None)


def _tokens_with(tokenizer: Any, character: str) -> frozenset[int]:
    """The tokens whose text holds a character: only these can end the stop text, so only they are looked at."""
    return frozenset(token for text, token in tokenizer.get_vocab().items() if character in text)
