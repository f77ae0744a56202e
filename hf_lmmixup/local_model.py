"""Chat models that write on this machine: any generating function, and vLLM in this process.

One use, with the generator of this package::

    model = GeneratorModel(LocalGenerator("Qwen/Qwen2.5-1.5B-Instruct", max_new_tokens=256).generate, "qwen2.5-1.5b")
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from threading import Event
from typing import Any

from hf_lmmixup.chat_model import ChatReply, ChatRequest, Message
from hf_lmmixup.verdict import CUT


BATCH_SIZE = 64
"""Conversations that a generator gets at a time: what a crash costs, and what Ctrl-C waits for."""


class GeneratorModel:
    """Any function from conversations to completions as a chat model, such as `LocalGenerator(...).generate`.

    Args:
        generate: Called with a list of conversations; returns one completion each, `None` where there is none.
        name: Its name.
        settings: What its answers depend on, besides the name.
        batch_size: Conversations it gets at a time.
    """

    def __init__(
        self,
        generate: Callable[[Sequence[Sequence[Message]]], Sequence[str | None]],
        name: str,
        *,
        settings: dict[str, Any] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.generate, self.name, self.batch_size = generate, name, batch_size
        self.settings = {"model": name, **(settings or {})}

    def replies(self, requests: Iterable[ChatRequest], stop: Event | None = None) -> Iterator[ChatReply]:
        """Answer requests batch by batch; see `ChatModel.replies`."""
        pulled = iter(requests)
        while not (stop and stop.is_set()) and (batch := list(islice(pulled, self.batch_size))):
            texts = self.generate([request.messages for request in batch])
            for request, text in zip(batch, texts, strict=True):
                error = "longer than the model's window" if text is None else None
                yield ChatReply(request.key, text, error, answered=text is not None)


class VLLMModel:
    """A model in vLLM's own process; batches, shared prefixes and the reply's form are its affair.

    Args:
        model: Folder or Hub id.
        temperature: Of the sampling; requests with a seed draw from it.
        max_tokens: Longest reply.
        batch_size: Requests handed over at a time.
        engine: Further arguments of `vllm.LLM`, such as `tensor_parallel_size`.

    Raises:
        ImportError: If the `vllm` extra is missing.
    """

    def __init__(
        self,
        model: str,
        *,
        temperature: float = 0.0,
        max_tokens: int = 256,
        batch_size: int = 1024,
        engine: dict[str, Any] | None = None,
    ) -> None:
        try:
            from vllm import LLM, SamplingParams
            from vllm.sampling_params import StructuredOutputsParams
        except ImportError as error:
            raise ImportError('Running vLLM in this process needs it: pip install "hf-lmmixup[vllm]".') from error
        self.name, self.batch_size = model, batch_size
        self.settings = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        self._engine: Any = LLM(model=model, **{"enable_prefix_caching": True, "seed": 0, **(engine or {})})
        self._sampling: Any = SamplingParams
        self._structured: Any = StructuredOutputsParams

    def replies(self, requests: Iterable[ChatRequest], stop: Event | None = None) -> Iterator[ChatReply]:
        """Answer requests batch by batch; see `ChatModel.replies`."""
        pulled = iter(requests)
        while not (stop and stop.is_set()) and (batch := list(islice(pulled, self.batch_size))):
            outputs = self._engine.chat(
                [list(request.messages) for request in batch],
                sampling_params=[self._parameters(request) for request in batch],
                use_tqdm=False,
            )
            for request, output in zip(batch, outputs, strict=True):
                (written,) = output.outputs
                cut = written.finish_reason == "length"
                yield ChatReply(request.key, written.text, CUT if cut else None)

    def _parameters(self, request: ChatRequest) -> Any:
        return self._sampling(
            temperature=self.settings["temperature"],
            max_tokens=self.settings["max_tokens"],
            seed=request.seed,
            structured_outputs=self._structured(json=request.schema) if request.schema else None,
        )
