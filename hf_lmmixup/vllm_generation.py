"""Completions from vLLM inside this process: the fastest way on a GPU.

A rewrite copies much of its prompt, so speculation from the text itself pays: suffix decoding where the package
`arctic-inference` is installed (1.75 times a tuned engine in a published run of rewrites), else n-grams. One use::

    generator = VLLMGenerator("runs/distiller", max_new_tokens=1024, tensor_parallel_size=1)
    distill(clustered, generator.generate, distiller_name=generator.name, count_tokens=generator.count_tokens,
            max_prompt_tokens=generator.max_prompt_tokens)

Each row samples from its own seed. Whether greedy text depends on the other rows of a batch is vLLM's affair: set the
environment variable `VLLM_BATCH_INVARIANT=1` before the start where the same bytes matter (recent GPUs, beta).
"""

import logging
from collections.abc import Callable, Sequence
from importlib import util
from typing import Any

from hf_lmmixup.generation import MAX_NEW_TOKENS, TEMPERATURE
from hf_lmmixup.prompts import ANSWER_CLOSE, Messages, prompt_room, prompt_tokens, until_answer_ends


logger = logging.getLogger(__name__)

CHUNK = 2048
"""Rows handed over at a time: many times what a GPU works on together, and all that a crash costs with a journal."""

SUFFIX = {"method": "suffix", "num_speculative_tokens": 32}
NGRAM = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}


class VLLMGenerator:
    """A chat model in vLLM.

    Args:
        model: Folder or Hub id of a model whose tokenizer has a chat template.
        max_new_tokens: Longest completion, in tokens.
        max_prompt_tokens: Longest prompt; `None` means what the model's length leaves beside `max_new_tokens`.
        temperature: For calls with seeds.
        speculate: Propose tokens from the prompt and from earlier text.
        **engine: Further arguments of `vllm.LLM`, such as `tensor_parallel_size` or `max_model_len`.

    Attributes:
        name: The model's name, for lineage.

    Raises:
        ImportError: If the `vllm` extra is missing.
    """

    def __init__(
        self,
        model: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_prompt_tokens: int | None = None,
        temperature: float = TEMPERATURE,
        speculate: bool = True,
        **engine: Any,
    ) -> None:
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise ImportError('Running vLLM in this process needs it: pip install "hf-lmmixup[vllm]".') from error
        settings: dict[str, Any] = {"model": model, "seed": 0, "enable_prefix_caching": True}
        if speculate:
            settings["speculative_config"] = SUFFIX if util.find_spec("arctic_inference") else NGRAM
        self.name, self.max_new_tokens, self.temperature = model, max_new_tokens, temperature
        self._engine: Any = LLM(**{**settings, **engine})
        self._sampling: Any = SamplingParams
        self.tokenizer: Any = self._engine.get_tokenizer()
        window = self._engine.llm_engine.model_config.max_model_len
        self.max_prompt_tokens = prompt_room(window, max_new_tokens, max_prompt_tokens)

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
        """One completion for each conversation, up to and with `</answer>`; see `distillation.Generate`.

        Returns:
            The completions; `None` for a prompt longer than `max_prompt_tokens` (prompts are never cut).

        Raises:
            ValueError: If the numbers of seeds and conversations differ, or the chat template refuses the messages.
        """
        if seeds is not None and len(seeds) != len(conversations):
            raise ValueError(f"{len(seeds)} seeds for {len(conversations)} conversations; give one each.")
        texts: list[str | None] = [None] * len(conversations)
        for start in range(0, len(conversations), CHUNK):
            places = range(start, min(start + CHUNK, len(conversations)))
            prompts = {place: prompt_tokens(self.tokenizer, conversations[place]) for place in places}
            fitting = [place for place in places if len(prompts[place]) <= self.max_prompt_tokens]
            outputs = self._engine.generate(
                [{"prompt_token_ids": prompts[place]} for place in fitting],
                [self._parameters(None if seeds is None else seeds[place]) for place in fitting],
                use_tqdm=False,
            )
            for place, output in zip(fitting, outputs, strict=True):
                texts[place] = until_answer_ends(output.outputs[0].text)
            if on_reply is not None:
                for place in places:
                    on_reply(place, texts[place])
        if missing := texts.count(None):
            logger.warning("%d of %d prompts are too long and get no completion.", missing, len(texts))
        return texts

    def _parameters(self, seed: int | None) -> Any:
        return self._sampling(
            temperature=0.0 if seed is None else self.temperature,
            seed=seed,
            max_tokens=self.max_new_tokens,
            stop=[ANSWER_CLOSE],
            include_stop_str_in_output=True,
            # Some tokenizers make special tokens of the tags, and special tokens would vanish.
            skip_special_tokens=False,
        )
