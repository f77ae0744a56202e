"""Ask a chat model many questions, read its replies strictly, and record every answer it was paid for.

What the stages that question a model have in common: nothing is asked that the journal answers already; a reply that
cannot be read is asked again, then set aside with the reason; Ctrl-C and SIGTERM let the requests in flight finish and
record them before the run ends. Memory holds the requests in flight, never the rows.

One entry of the journal for a reply that could be read, and for one that could not::

    ["5f1d0c8f1f0b7a52", {"answer": {"overall": 7}}]
    ["91c2aa04b7c0de11", {"error": "refusal"}]
"""

import logging
import re
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from hf_lmmixup.chat_model import ChatModel, ChatReply, ChatRequest, ModelStopped, Stop
from hf_lmmixup.journal import Journal
from hf_lmmixup.records import Outcome
from hf_lmmixup.verdict import ABOUT_THE_ROW, CUT, CUT_THINKING


logger = logging.getLogger(__name__)

MAX_ASKS = 5
"""How often a question is asked whose reply cannot be read. A model that fails so often keeps failing."""

GREEDY_ASKS = {CUT: 3, CUT_THINKING: 1}
"""The same without sampling. The note may make a text shorter; thoughts are as long the next time."""

MAX_UNREAD = 32
"""Questions that all end with a reply that cannot be read, before the first one that can: something is set wrong."""

NUMBER = re.compile(r"[\w-]*\d[\w-]*")

STOPPING = "Stopping: waiting for the requests in flight. A second signal stops at once."

Reader = Callable[[str], Any]
"""Turns a reply's text into a JSON value, or raises a ValueError whose message is the reason why it cannot."""


class TooManyRejects(RuntimeError):
    """More rows than allowed got no answer, so the result must not pass for a good one.

    The command line writes the result all the same, with its reasons, and ends with exit code 4.

    Attributes:
        outcome: The stage's whole outcome.
    """

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


@dataclass
class Answers:
    """The answers of a run, read from its journal.

    Attributes:
        journal: Where they are.
        unanswered: Key -> reason of requests that got no answer at all; they are not in the journal, so a later run
            asks them again.
    """

    journal: Journal
    unanswered: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, key: str) -> tuple[Any, str | None]:
        """The answer and `None`, or `None` and the reason why there is no answer."""
        if key in self.unanswered:
            return None, self.unanswered[key]
        entry = self.journal[key]
        return entry.get("answer"), entry.get("error")


def ask_all(
    chat_model: ChatModel,
    requests: Iterable[ChatRequest],
    read: Reader,
    journal: Journal,
    *,
    note: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Answers:
    """Get an answer, or the reason why there is none, for every request.

    Args:
        chat_model: Who answers.
        requests: The questions, pulled as the model works them off. Equal keys are the same question.
        read: Reads a reply; what it raises a ValueError for is asked again, `MAX_ASKS` times in all.
        journal: Where answers are kept; questions it answers are not asked.
        note: A sentence that is added to the last message of a repeated question.
        progress: Called with the number of questions settled since the last call.

    Returns:
        The answers by key.

    Raises:
        ModelStopped: If the model will not answer any more, or its first `MAX_UNREAD` replies cannot be read. The
            answers that it gave are in the journal, those replies are not.
        KeyboardInterrupt: After Ctrl-C, when the requests in flight are recorded.
        SystemExit: With code 143 after SIGTERM, likewise.
    """
    run = _Run(journal, read, note, progress, is_greedy=chat_model.settings.get("temperature") == 0)
    with finish_on_signals() as stop:
        source = iter(requests)
        try:
            while True:
                for reply in chat_model.replies(run.pull(source, stop), stop):
                    run.take(reply)
                if stop.is_set() or run.jammed or not run.again:
                    break
        finally:
            run.record_unread()
        journal.flush()
        if run.jammed:
            raise ModelStopped(f"{chat_model.name}: {run.jam()}")
    return Answers(journal, run.unanswered)


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first.

    Args:
        reasons: Why there is no answer, row by row. Where a server's words, which stand in brackets, differ in
            a number or an id alone, the reasons are one.

    Returns:
        Counts by reason, with `...` for what differs.
    """
    alike: dict[str, Counter[str]] = {}
    for reason, count in Counter(reasons).items():
        ours, _, said = reason.partition(" (")
        alike.setdefault(f"{ours} ({NUMBER.sub('...', said)}", Counter())[reason] = count
    found: Counter[str] = Counter()
    for group in alike.values():
        words = zip(*(reason.split(" ") for reason in group), strict=True)
        found[" ".join(word[0] if len(set(word)) == 1 else "..." for word in words)] += group.total()
    return dict(found.most_common())


@contextmanager
def finish_on_signals() -> Iterator[Stop]:
    """Within this block the first Ctrl-C or SIGTERM sets the event; when the block ends, the signal takes effect.

    A second one acts at once: Ctrl-C raises `KeyboardInterrupt`, or sets `Stop.at_once` where that is watched; SIGTERM
    does what it would have done without the block. Outside the main thread, where Python delivers no signals, the
    event is never set.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    received: list[int] = []
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore(*numbers: int) -> None:
        for number in numbers:
            action = before[number]
            signal.signal(number, action if action is not None else signal.SIG_DFL)

    def on_signal(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) == 1:
            restore(signal.SIGTERM)
            stop.set()  # never twice: it takes a lock, and the second signal may come while the first one holds it
            # In a thread of its own: the signal may have come amid another message to the same stream.
            threading.Thread(target=logger.warning, args=(STOPPING,)).start()
            return
        stop.at_once = True
        if not stop.watched:
            raise KeyboardInterrupt

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore(*before)
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])


class _Run:
    """The state of one `ask_all`: what is being asked and what has to be asked again.

    Replies that cannot be read are held back until one can: if there is none among the first `MAX_UNREAD`, the next
    run shall ask those questions again.
    """

    def __init__(
        self, journal: Journal, read: Reader, note: str | None, progress: Callable[[int], None] | None, is_greedy: bool
    ) -> None:
        self.journal, self.read, self.note, self.is_greedy = journal, read, note, is_greedy
        self.progress = progress or (lambda settled: None)
        self.asked: dict[str, tuple[ChatRequest, int]] = {}
        self.again: deque[tuple[ChatRequest, int]] = deque()
        self.unanswered: dict[str, str] = {}
        self.unread: dict[str, str] = {}
        self.is_readable = self.jammed = False

    def pull(self, source: Iterator[ChatRequest], stop: threading.Event) -> Iterator[ChatRequest]:
        """Repeated questions first, then new ones."""
        while not stop.is_set() and not self.jammed:
            if self.again:
                request, ask = self.again.popleft()
            else:
                new = self._next_new(source, stop)
                if new is None:
                    return
                request, ask = new, 1
            self.asked[request.key] = (request, ask)
            yield request if ask == 1 else self._repeated(request, ask)

    def take(self, reply: ChatReply) -> None:
        """Record a reply, put its question back, or set it aside."""
        request, ask = self.asked.pop(reply.key)
        error = reply.error
        if error is None and reply.text is not None:
            try:
                self.journal.add(reply.key, {"answer": self.read(reply.text)})
            except ValueError as problem:
                error = str(problem)
            else:
                self.is_readable = True
                self.record_unread()
                self.progress(1)
                return
        error = error or "empty reply"
        if reply.answered and ask < self._most_asks(error):
            self.again.append((request, ask + 1))
            return
        if not reply.answered:
            self.unanswered[reply.key] = error
        elif self.is_readable or error in ABOUT_THE_ROW:
            self.journal.add(reply.key, {"error": error})
        else:
            self.unread[reply.key] = error
            self.jammed = len(self.unread) >= MAX_UNREAD
        self.progress(1)

    def record_unread(self) -> None:
        """Make the reasons that were held back final, unless nothing at all can be read."""
        while self.unread and not self.jammed:
            key, error = self.unread.popitem()
            self.journal.add(key, {"error": error})

    def jam(self) -> str:
        """Why the run ends, and what to do."""
        ((reason, _),) = Counter(self.unread.values()).most_common(1)
        asked = f"none of the first {MAX_UNREAD} questions got a reply that can be read; most often: {reason}"
        longer = "Allow longer replies (--max-new-tokens): a model that thinks first needs thousands of tokens."
        advice = (
            longer if reason in GREEDY_ASKS else "Look at what the model writes, and change its settings or the model."
        )
        return f"{asked}. {advice} These questions will be asked again."

    def _most_asks(self, error: str) -> int:
        return GREEDY_ASKS.get(error, MAX_ASKS) if self.is_greedy else MAX_ASKS

    def _next_new(self, source: Iterator[ChatRequest], stop: threading.Event) -> ChatRequest | None:
        for request in source:
            if stop.is_set():  # a run that goes on may have a million answers to pass by
                return None
            if request.key in self.journal:
                self.is_readable = self.is_readable or "answer" in self.journal[request.key]
                self.progress(1)
            elif not any(request.key in known for known in (self.asked, self.unanswered, self.unread)):
                return request
        return None

    def _repeated(self, request: ChatRequest, ask: int) -> ChatRequest:
        """The same question once more: with the note, and with another seed, so that another reply is drawn."""
        seed = None if request.seed is None else request.seed + ask - 1
        if self.note is None:
            return replace(request, seed=seed)
        *earlier, last = request.messages
        return replace(
            request, seed=seed, messages=[*earlier, {**last, "content": f"{last['content']}\n\n{self.note}"}]
        )
