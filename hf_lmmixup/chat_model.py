"""What the package needs of a chat model: requests in, replies out, each under its key.

A chat model is anything with a `name`, `settings` and `replies`; the adapters are in `endpoint` (any server that
speaks the OpenAI protocol) and `local_model` (transformers, vLLM). Requests are pulled one by one, as many at a time
as the model works on, so a run of a million rows holds only those in flight. Replies come in any order.

One exchange::

    ChatRequest("5f1d0c8f1f0b7a52", [{"role": "user", "content": "Rate this ..."}])
    ChatReply("5f1d0c8f1f0b7a52", text='{"rarity": 3, "complexity": 4, "informativeness": 4, "overall": 5}')

A fake for tests is four lines::

    class Echo:
        name, settings = "echo", {}
        def replies(self, requests, stop=None):
            return (ChatReply(request.key, request.messages[-1]["content"]) for request in requests)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol


Message = dict[str, str]
"""One turn: `role` (system, user or assistant) and `content`."""


@dataclass(frozen=True)
class ChatRequest:
    """One question to a model.

    Attributes:
        key: Comes back with the reply.
        messages: The turns so far.
        seed: Seed of the sampling for this request, from `records.row_seed`; `None` where nothing is drawn.
        schema: JSON schema that the reply shall follow, where the model can be held to one.
    """

    key: str
    messages: Sequence[Message]
    seed: int | None = None
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class ChatReply:
    """What came back: a text, or why there is none.

    Attributes:
        key: Key of the request.
        text: What the model wrote.
        error: Why there is no usable text, in words that do not depend on the row.
        answered: Whether the model did answer and was paid, however useless the answer. If not (a refused request, a
            server that stayed down), the request can be repeated later at no cost.
        reasoning: What the model thought, where the server parts it from the text.
    """

    key: str
    text: str | None = None
    error: str | None = None
    answered: bool = True
    reasoning: str | None = None


class Stop(Event):
    """Whether a run is to end: soon once it is set, or at once.

    Attributes:
        at_once: Whatever is in flight is to be dropped.
        watched: Someone looks at `at_once` many times a second and ends the run at a place where nothing breaks. As
            long as nobody does, the second Ctrl-C raises `KeyboardInterrupt` wherever the program stands.
    """

    at_once = False
    watched = False


class ModelStopped(RuntimeError):
    """The model will not answer any further request: a refused key, exhausted quota, an unknown model, no server.

    Replies that came before it are good and kept. The command line ends with exit code 3.
    """


class ChatModel(Protocol):
    """A model that answers requests.

    Attributes:
        name: Model name, for cards and lineage columns.
        settings: What its answers depend on (model, temperature, ...), JSON values by name; no secrets.
    """

    name: str
    settings: dict[str, Any]

    def replies(self, requests: Iterable[ChatRequest], stop: Event | None = None) -> Iterator[ChatReply]:
        """Answer requests, pulled as capacity frees up, in any order; one reply each.

        Args:
            requests: The questions. May be pulled from another thread, by one thread at a time.
            stop: When set, no further request is sent, those in flight are delivered, and those that would have to be
                sent again are left without a reply.

        Raises:
            ModelStopped: If no further request can succeed; replies in flight are delivered first.
        """
        ...
