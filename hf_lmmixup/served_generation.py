"""A chat model behind an endpoint, or any other `ChatModel`, as the function that distillation needs.

Requests go out as fast as the model takes them, each with its own seed; what comes back is handed on at once, so a
journal holds it before the next one is waited for. The first Ctrl-C lets the requests in flight finish. One use, with
an instruct model and no training at all::

    asked = EndpointModel("qwen2.5-7b-instruct", "http://127.0.0.1:8000/v1", max_tokens=1024)
    again = EndpointModel("qwen2.5-7b-instruct", "http://127.0.0.1:8000/v1", max_tokens=1024, temperature=0.7)
    distill(clustered, ServedGenerator(asked, again).generate, distiller_name=asked.name)

A vLLM server saves the tokens after the answer with `EndpointModel(..., extra=VLLM_STOP)`; other servers refuse the
second key, and without it they cut the closing tag off.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from threading import Event

from hf_lmmixup.chat_model import ChatModel, ChatRequest
from hf_lmmixup.dispatch import counted, finish_on_signals
from hf_lmmixup.prompts import ANSWER_CLOSE, THINK_CLOSE, THINK_OPEN, Messages, until_answer_ends


logger = logging.getLogger(__name__)

SERVED_TIMEOUT = 600.0
"""Seconds for one completion from a server: long answers under load take minutes."""

VLLM_STOP = {"stop": [ANSWER_CLOSE], "include_stop_str_in_output": True}
"""Body fields with which a vLLM server stops at the end of the answer."""


class ServedGenerator:
    """A chat model that writes completions.

    Args:
        chat_model: Asked without seeds; give it temperature 0.
        sampling_model: Asked with seeds, when a completion was malformed; the same model with a temperature above 0.
            `None` asks `chat_model` again, which makes sense only if it samples.

    Attributes:
        name: The model's name, for lineage.
    """

    def __init__(self, chat_model: ChatModel, sampling_model: ChatModel | None = None) -> None:
        self.chat_model, self.sampling_model = chat_model, sampling_model or chat_model
        self.name = chat_model.name

    def generate(
        self,
        conversations: Sequence[Messages],
        *,
        seeds: Sequence[int] | None = None,
        on_reply: Callable[[int, str | None], None] | None = None,
    ) -> list[str | None]:
        """One completion for each conversation, up to and with `</answer>`; see `distillation.Generate`.

        A request that the server never answered leaves `None` and is not told to `on_reply`, so a journal does not
        hold it and the next run asks it again. An answer without usable text (a refusal, say) is told as `None`. What
        went wrong is counted in a warning.

        Raises:
            ValueError: If the numbers of seeds and conversations differ.
            ModelStopped: If the model will not answer any more.
            KeyboardInterrupt: After Ctrl-C, when the requests in flight are answered.
        """
        if seeds is not None and len(seeds) != len(conversations):
            raise ValueError(f"{len(seeds)} seeds for {len(conversations)} conversations; give one each.")
        model = self.chat_model if seeds is None else self.sampling_model
        texts: list[str | None] = [None] * len(conversations)
        unanswered, errors = 0, Counter[str]()
        with finish_on_signals() as stop:
            for reply in model.replies(_requests(conversations, seeds, stop), stop):
                place = int(reply.key)
                errors.update([reply.error] if reply.error else [])
                if not reply.answered:
                    unanswered += 1
                    continue
                texts[place] = None if reply.text is None else _whole(until_answer_ends(reply.text), reply.reasoning)
                if on_reply is not None:
                    on_reply(place, texts[place])
        if unanswered:
            logger.warning("%s left %d of %d requests unanswered.", self.name, unanswered, len(conversations))
        if errors:
            logger.warning(
                "%s gave no good text for %d requests: %s", self.name, errors.total(), counted(errors.elements())
            )
        return texts


def _whole(text: str, reasoning: str | None) -> str:
    """A completion as the model wrote it: servers part its reasoning from the text, templates hold its opening tag."""
    if THINK_OPEN in text or (reasoning is None and THINK_CLOSE not in text):
        return text
    return f"{THINK_OPEN}{text}" if THINK_CLOSE in text else f"{THINK_OPEN}{reasoning}{THINK_CLOSE}\n{text}"


def _requests(conversations: Sequence[Messages], seeds: Sequence[int] | None, stop: Event) -> Iterator[ChatRequest]:
    for place, messages in enumerate(conversations):
        if stop.is_set():
            return
        yield ChatRequest(str(place), list(messages), None if seeds is None else seeds[place])
