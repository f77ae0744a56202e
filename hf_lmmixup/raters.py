"""Who rates, from what a user names: a served model, a model on this machine, or a datastore of rated texts.

named(["rater-8b"], endpoint="http://127.0.0.1:8000/v1")  ->  [(EndpointModel("rater-8b", ...), FOUR_AXES)]
named(["Qwen/Qwen2.5-1.5B-Instruct"])                     ->  [(DigitModel(...), ONE_DIGIT)]
"""

from collections.abc import Sequence
from typing import Any

from hf_lmmixup.bundled import rated_texts
from hf_lmmixup.chat_model import ChatModel
from hf_lmmixup.datastore import ScoredDatastore, build
from hf_lmmixup.digit_model import DigitModel
from hf_lmmixup.encoder import CachedEncoder, Encoder, load_encoder
from hf_lmmixup.endpoint import EndpointModel
from hf_lmmixup.local_model import GeneratorModel, VLLMModel
from hf_lmmixup.rating_prompt import FOUR_AXES, ONE_DIGIT, Rubric
from hf_lmmixup.reward_settings import BUNDLED


RUBRICS = {"axes": FOUR_AXES, "digit": ONE_DIGIT}
ENGINES = ("transformers", "vllm")
REPLY_TOKENS = 256
"""Longest reply: four judgements take thirty tokens. A model that thinks first needs more."""

Rater = tuple[ChatModel, Rubric]


def named(
    models: Sequence[str],
    *,
    endpoint: str | None = None,
    engine: str = "transformers",
    rubric: str | None = None,
    max_new_tokens: int = REPLY_TOKENS,
    **options: Any,
) -> list[Rater]:
    """The chat models that a user names, each with the rubric that it answers.

    Args:
        models: Names the server knows, or folders or Hub ids of models for this machine.
        endpoint: Address of an OpenAI-compatible server; `None` runs the models here.
        engine: What runs a model here: `transformers` or `vllm`.
        rubric: `axes` (four judgements as JSON) or `digit` (the expected digit from one forward pass); `None` means
            `digit` with transformers and `axes` elsewhere.
        max_new_tokens: Longest reply; the rubric `digit` needs none.
        options: Further arguments of `EndpointModel`.

    Returns:
        Models and rubrics.

    Raises:
        ValueError: If engine or rubric is unknown, or they do not go together.
        ImportError: If an extra is missing.
    """
    if engine not in ENGINES:
        raise ValueError(f"Unknown engine {engine!r}. Expected one of {list(ENGINES)}.")
    here = endpoint is None and engine == "transformers"
    chosen = rubric or ("digit" if here else "axes")
    if chosen not in RUBRICS:
        raise ValueError(f"Unknown rubric {chosen!r}. Expected one of {list(RUBRICS)}.")
    if chosen == "digit" and not here:
        raise ValueError("The rubric 'digit' reads the probabilities of a transformers model on this machine.")
    if endpoint is not None:
        return [(EndpointModel(model, endpoint, max_tokens=max_new_tokens, **options), FOUR_AXES) for model in models]
    if engine == "vllm":
        return [(VLLMModel(model, max_tokens=max_new_tokens), FOUR_AXES) for model in models]
    if chosen == "digit":
        return [(DigitModel(model), ONE_DIGIT) for model in models]
    return [(_writer(model, max_new_tokens), FOUR_AXES) for model in models]


def named_datastore(name: str, encoder: Encoder | None = None) -> tuple[ScoredDatastore, Encoder]:
    """A datastore and the encoder that it was made with.

    Args:
        name: A folder, a Hub id, or `bundled` for the mini MIXTURE's.
        encoder: The encoder, if it is loaded already.

    Returns:
        Both; the encoder remembers its latest texts.

    Raises:
        FileNotFoundError: If the folder holds no datastore.
        ValueError: If it contradicts itself, or the encoder is another one.
    """
    if name == BUNDLED:
        encoder = encoder or CachedEncoder(load_encoder())
        rows = rated_texts("train")
        columns = [row.text for row in rows], [row.score for row in rows], [row.task_type for row in rows]
        return build(*columns, encoder), encoder
    datastore = ScoredDatastore.from_pretrained(name)
    return datastore, encoder or CachedEncoder(load_encoder(datastore.encoder, revision=datastore.encoder_revision))


def _writer(model: str, max_new_tokens: int) -> ChatModel:
    from hf_lmmixup.generation import LocalGenerator

    generator = LocalGenerator(model, max_new_tokens=max_new_tokens)
    return GeneratorModel(generator.generate, model, settings={"max_tokens": max_new_tokens})
