"""Who writes the distillations of a run: a model on this machine, vLLM, or a server, as the recipe names it.

    open_writer(recipe.distiller, "Qwen/Qwen2.5-7B-Instruct")  ->  Writer("Qwen/Qwen2.5-7B-Instruct", generate, ...)

The same prompt goes to all of them, so a trained distiller and an instruct model as it is (the training-free mode)
differ in nothing but their weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from hf_lmmixup.distillation import PROMPTS_AT_A_TIME, Generate, Messages
from hf_lmmixup.recipe import DistillerRecipe
from hf_lmmixup.transport import check_url, read_key


FEWEST_BYTES_PER_TOKEN = 3
"""Where no tokenizer is at hand prompts are measured so, in UTF-8. English has about four bytes in a token, a Chinese
character has three and is about one token, so the guess is on the safe side."""


@dataclass(frozen=True)
class Writer:
    """What writes completions, and what is known of it.

    Attributes:
        name: The model, for lineage.
        generate: Conversations to completions.
        settings: What the completions depend on besides the name, plain data.
        max_prompt_tokens: Longest prompt; `None` for no limit.
        count_tokens: Length of a prompt.
        at_a_time: Prompts that it should get at a time.
    """

    name: str
    generate: Generate
    settings: dict[str, Any] = field(default_factory=dict)
    max_prompt_tokens: int | None = None
    count_tokens: Callable[[Messages], int] | None = None
    at_a_time: int = PROMPTS_AT_A_TIME


def check_server(options: DistillerRecipe) -> None:
    """Look for what asking a recipe's server takes before a run begins: what is found later is found hours later.

    Raises:
        ImportError: If the `rate` extra is missing.
        ValueError: If the address cannot be used, or the key that it needs is not in the environment or is none.
    """
    if options.endpoint is None:
        return
    url = check_url(options.endpoint, allow_http=options.allow_http, key_variable=options.key_variable)
    if find_spec("aiohttp") is None or find_spec("openai") is None:
        raise ImportError('Asking an endpoint needs the openai client: pip install "hf-lmmixup[rate]".')
    read_key(url, options.key_variable)


def open_writer(options: DistillerRecipe, model: str, name: str | None = None) -> Writer:
    """Open the model that a recipe names.

    Args:
        options: The recipe's part.
        model: Folder, Hub id, or the name that the server knows.
        name: What the lineage calls it; the model by default.

    Returns:
        The writer.

    Raises:
        ImportError: If an extra is missing.
        ValueError: If the address or the model cannot be used.
    """
    settings = writing_settings(options)
    if options.endpoint is not None:
        return _served(options, model, settings)
    local = _local(options, model)
    return Writer(name or model, local.generate, settings, local.max_prompt_tokens, local.count_tokens)


def writing_settings(options: DistillerRecipe) -> dict[str, Any]:
    """What completions depend on besides the model and its prompts; a journal of other settings is refused."""
    return {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "no_repeat_ngram_size")}


def _served(options: DistillerRecipe, model: str, settings: dict[str, Any]) -> Writer:
    from hf_lmmixup.endpoint import EndpointModel
    from hf_lmmixup.served_generation import SERVED_TIMEOUT, ServedGenerator

    asked, again = (
        EndpointModel(
            model,
            str(options.endpoint),
            concurrency=options.concurrency,
            timeout=SERVED_TIMEOUT,
            temperature=temperature,
            max_tokens=options.max_new_tokens,
            structured=False,
            key_variable=options.key_variable,
            allow_http=options.allow_http,
        )
        for temperature in (0.0, options.temperature)
    )
    generator = ServedGenerator(asked, again)
    return Writer(model, generator.generate, settings, options.max_prompt_tokens, count_bytes)


def _local(options: DistillerRecipe, model: str) -> Any:
    arguments: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "max_prompt_tokens": options.max_prompt_tokens,
        "temperature": options.temperature,
    }
    if options.engine == "vllm":
        from hf_lmmixup.vllm_generation import VLLMGenerator

        return VLLMGenerator(model, **arguments)
    from hf_lmmixup.generation import LocalGenerator
    from hf_lmmixup.paged_generation import PagedGenerator

    generator = PagedGenerator if options.engine == "paged" else LocalGenerator
    repeats = options.no_repeat_ngram_size
    return generator(model, batch_size=options.batch_size, no_repeat_ngram_size=repeats, **arguments)


def count_bytes(messages: Messages) -> int:
    """A prompt's length in tokens, guessed from its bytes."""
    return sum(len(message["content"].encode()) for message in messages) // FEWEST_BYTES_PER_TOKEN
