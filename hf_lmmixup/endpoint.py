"""A chat model behind any server that speaks the OpenAI protocol: hosted, vLLM, llama.cpp, TGI, Ollama.

The `openai` client makes the requests, and none twice: its own retries repeat a request when the quota is exhausted,
know no total deadline and let every worker wait for itself. Here:

- at most `concurrency` requests are in flight or delivered but not yet taken by the caller;
- each attempt has a total deadline, however slowly the body trickles, and a body is read up to `MAX_BODY_BYTES`;
- 429 and 503 pause all workers for as long as the server asks (`pacing`), other passing faults back off with jitter;
- a field that the model does not take (`max_tokens`, `temperature`) is renamed or left out, with a warning;
- a refused key, exhausted quota, an unknown model or a server that refuses everything stops the run;
- the key is read from the environment, goes into the request header and nowhere else.

One use::

    model = EndpointModel("rater-8b", "http://127.0.0.1:8000/v1")
    for reply in model.replies([ChatRequest("a", [{"role": "user", "content": "Rate ..."}])]): ...
"""

import asyncio
import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from threading import Event
from typing import Any

from hf_lmmixup.bounds import COUNT
from hf_lmmixup.chat_model import ChatReply, ChatRequest, ModelStopped, Stop
from hf_lmmixup.event_loops import anywhere
from hf_lmmixup.pacing import NAP, Pacing, retry_after, steady
from hf_lmmixup.secrecy import SHORTEST_SECRET, environment_secrets, without_secrets
from hf_lmmixup.transport import BodyTooLong, check_url, is_lost, open_client, passing_errors, read_key
from hf_lmmixup.verdict import ABOUT_THE_ROW, Verdict, error_body, judge_error, read_body


logger = logging.getLogger(__name__)

CONCURRENCY = 16
TIMEOUT = 60.0
"""Seconds for one attempt, from the first byte sent to the last byte read."""

GAP = 0.0003
"""Seconds between workers that go on after replies that came together. Requests that are sent at once are answered at
once, and then most replies wait for others to be handled: without a gap that costs a twentieth of the rate."""

MAX_ATTEMPTS = 6
"""How often a request is sent whose attempts fail in passing; the waits between add up to about a minute."""

MAX_REFUSALS = 20
"""How often a request is sent that is refused for its rate. Pauses grow or follow the server, so this is long."""

SINGLE_FAILURES = 10
"""Requests that fail in a row, without one success between them, before the server is held to be unusable."""

RENAMED = {"max_tokens": "max_completion_tokens"}
"""Fields that some models take under another name only."""


class EndpointModel:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        model: Model name that the server knows.
        base_url: The server's address up to and with `/v1`. There is no default: data goes only where it was sent.
        concurrency: Requests in flight.
        timeout: Seconds for one attempt.
        temperature: Of the sampling; `None` leaves it to the server.
        max_tokens: Longest reply; `None` leaves it to the server.
        structured: Hold replies to the request's JSON schema, where the server can (`response_format`).
        extra: Further fields of the request body. They are written into the run's settings: no secrets.
        key_variable: Environment variable that holds the key. A server on this machine needs none.
        allow_http: Let data go unencrypted to another machine.
        backoff: Seconds that the first wait after a passing fault may last.

    Raises:
        ImportError: If the `rate` extra is missing.
        ValueError: If the address holds a credential or is not encrypted, a number is out of range, or the key is
            in the place of its variable.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        concurrency: int = CONCURRENCY,
        timeout: float = TIMEOUT,
        temperature: float | None = 0.0,
        max_tokens: int | None = 256,
        structured: bool = True,
        extra: dict[str, Any] | None = None,
        key_variable: str = "OPENAI_API_KEY",
        allow_http: bool = False,
        backoff: float = 0.5,
    ) -> None:
        if not COUNT.admits(concurrency) or not timeout > 0:
            raise ValueError(f"concurrency={concurrency} must be at least 1 and timeout={timeout} above 0.")
        self.name, self.base_url = model, check_url(base_url, allow_http=allow_http, key_variable=key_variable)
        self.concurrency, self.timeout, self.backoff, self.key_variable = concurrency, timeout, backoff, key_variable
        sampling = {"temperature": temperature, "max_tokens": max_tokens}
        self.body: dict[str, Any] = {"model": model}
        self.body |= {name: value for name, value in sampling.items() if value is not None} | (extra or {})
        self.structured = structured
        self.left_out: set[str] = set()
        self.settings = {**self.body, "structured": structured}

    def replies(self, requests: Iterable[ChatRequest], stop: Event | None = None) -> Iterator[ChatReply]:
        """Answer requests; see `ChatModel.replies`.

        Raises:
            ModelStopped: If the server refuses the key, the quota is exhausted, or nothing gets through.
        """
        try:
            key = read_key(self.base_url, self.key_variable)
        except ValueError as error:
            raise ModelStopped(str(error)) from error
        yield from anywhere(self._delivered(iter(requests), stop or Event(), key or "none"))

    def _delivered(self, requests: Iterator[ChatRequest], stop: Event, key: str) -> Generator[ChatReply, None, None]:
        signals = stop if isinstance(stop, Stop) else Stop()
        signals.watched = True
        try:
            run = _Run(self, requests, stop, signals, key)
            try:
                with steady():
                    yield from run.delivered()
            finally:
                run.close()
        finally:
            signals.watched = stop.is_set()  # then the caller is about to end the run by itself

    def body_of(self, request: ChatRequest) -> dict[str, Any]:
        """The JSON body for one request."""
        body = {**self.body, "messages": list(request.messages)}
        if request.seed is not None:
            body["seed"] = request.seed
        if self.structured and request.schema is not None:
            schema = {"name": "reply", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        for field in self.left_out & body.keys():
            value = body.pop(field)
            if field in RENAMED:
                body.setdefault(RENAMED[field], value)
        return body

    def leave_out(self, field: str) -> None:
        """From now on, send requests without a field, or with it under its other name."""
        if field not in self.left_out:
            self.left_out.add(field)
            instead = f"{RENAMED[field]} takes its place" if field in RENAMED else "it is left out"
            logger.warning("%s does not take %s; %s.", self.name, field, instead)


class _Run:
    """One call of `replies`: an event loop that the caller's thread drives between the replies it takes.

    A worker goes on to its next request only after the caller has come back for more, so what is in flight and what is
    delivered but not yet recorded never exceed the concurrency together.

    Python acts on a signal between two of its own steps, so a loop that sleeps on its sockets would not hear of one
    that came just before it fell asleep, or that another thread took: `_look` wakes it. And an exception raised amid
    the loop's own steps can lose one of them, so signals are looked at, and raise nothing, while the loop runs.
    """

    def __init__(
        self, model: EndpointModel, requests: Iterator[ChatRequest], stop: Event, signals: Stop, key: str
    ) -> None:
        self.model, self.requests, self.stop, self.signals = model, requests, stop, signals
        self.secrets = environment_secrets() | ({key} if len(key) >= SHORTEST_SECRET else set())
        self.client = open_client(model.base_url, key)
        self.pacing, self.loop = Pacing(model.backoff), asyncio.new_event_loop()
        self.ready: deque[ChatReply] = deque()
        self.taken: list[asyncio.Event] = []
        self.ended: ModelStopped | None = None
        self.failures, self.lost, self.closing = 0, False, False
        self.workers = [self.loop.create_task(self._work()) for _ in range(model.concurrency)]
        for worker in self.workers:
            worker.add_done_callback(self._hand_over)
        self._look()

    def delivered(self) -> Iterator[ChatReply]:
        while self.workers:
            self.loop.run_forever()
            while self.ready:
                yield self.ready.popleft()
            if self.signals.at_once:
                raise KeyboardInterrupt
            for place, taken in enumerate(self.taken):
                self.loop.call_later(place * GAP, taken.set)
            self.taken.clear()
            for worker in [worker for worker in self.workers if worker.done()]:
                self.workers.remove(worker)
                worker.result()
        if self.lost and not self.stop.is_set():  # the server is gone, however few requests were left
            self._end(f"{self.failures} requests in a row failed, the last one with: connection failed")
        if self.ended:
            raise self.ended

    def close(self) -> None:
        """Drop what is still in flight and close the connections."""
        self.closing = True
        self.loop.run_until_complete(self._shut_down())
        self.loop.close()

    async def _shut_down(self) -> None:
        for worker in self.workers:
            worker.cancel()
        await asyncio.gather(*self.workers, return_exceptions=True)
        await self.client.close()

    def _look(self) -> None:
        """Let signals be heard now, and again a little later."""
        if self.signals.at_once:
            self._hand_over()
        self.loop.call_later(NAP, self._look)

    def _hand_over(self, worker: Any = None) -> None:
        """Give the caller's thread back when this round of the loop is through."""
        if not self.closing:
            self.loop.stop()

    def _halted(self) -> bool:
        return self.ended is not None or self.stop.is_set()

    async def _work(self) -> None:
        while True:
            await self.pacing.turn(self._halted)
            request = None if self._halted() else next(self.requests, None)
            reply = None if request is None else await self._answer(request)
            if reply is None:
                return
            self.ready.append(reply)
            taken = asyncio.Event()
            self.taken.append(taken)
            self._hand_over()
            await taken.wait()

    async def _answer(self, request: ChatRequest) -> ChatReply | None:
        """Send a request until it is settled; `None` if the run ends first."""
        attempts = refusals = 0
        while not self._halted():
            verdict = await self._attempt(request)
            if verdict.stops:
                self._end(verdict.error)
                return None
            attempts += verdict.passing and not verdict.refused
            refusals += verdict.refused
            if not verdict.passing or attempts >= MAX_ATTEMPTS or refusals >= MAX_REFUSALS:
                return self._settled(request, verdict)
            if verdict.refused:
                self.pacing.refused(verdict.wait)
            else:
                await self.pacing.back_off(attempts, self._halted)
            await self.pacing.turn(self._halted)
        return None

    async def _attempt(self, request: ChatRequest) -> Verdict:
        body = self.model.body_of(request)
        try:
            async with asyncio.timeout(self.model.timeout):
                response = await self.client.post("/chat/completions", body=body)
        except TimeoutError:
            return Verdict(error="no reply in time", passing=True)
        except BodyTooLong:
            return Verdict(error="reply too long", answered=True)
        except passing_errors() as error:
            return Verdict(error=f"connection failed ({type(error).__name__})", passing=True, lost=is_lost(error))
        if 200 <= response.status < 300:
            verdict = read_body(response.body, self.secrets)
        else:
            said, wait = error_body(response.body), retry_after(response.headers)
            verdict = judge_error(response.status, said, wait, self.secrets)
        if verdict.untaken not in body:
            return verdict
        self.model.leave_out(verdict.untaken)
        return await self._attempt(request)

    def _settled(self, request: ChatRequest, verdict: Verdict) -> ChatReply:
        self.lost = verdict.lost
        if verdict.answered or verdict.error in ABOUT_THE_ROW:
            self.failures = 0
            self.pacing.succeeded()
        else:
            self.failures += 1
            if self.failures >= max(SINGLE_FAILURES, 2 * self.model.concurrency):
                reason = f"{verdict.error}{verdict.said}"
                self._end(f"{self.failures} requests in a row failed, the last one with: {reason}")
        error = verdict.error and self._public(verdict.error)
        return ChatReply(request.key, verdict.text, error, verdict.answered, verdict.reasoning)

    def _end(self, reason: str | None) -> None:
        if self.ended is None:
            place = f"{self.model.name} at {self.model.base_url}"
            self.ended = ModelStopped(f"{place} stopped answering: {self._public(reason or '')}")

    def _public(self, text: str) -> str:
        """A server's words without secrets: some servers repeat the key that they refuse."""
        return without_secrets(text, self.secrets)
