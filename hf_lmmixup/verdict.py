"""What a server's response means for a request: an answer, a passing fault, a refused row, or the end of the run.

Nothing here guesses an answer: a response without a usable text becomes a reason.

Three responses and what they mean::

    200 {"choices": [{"message": {"content": "{...}"}, "finish_reason": "stop"}]}   -> the text
    429 {"error": {"code": "rate_limit_exceeded"}}, Retry-After: 2                  -> refused, wait 2 s
    429 {"error": {"code": "insufficient_quota"}}                                   -> the run ends
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_lmmixup.prompts import THINK_CLOSE, THINK_OPEN
from hf_lmmixup.secrecy import without_secrets


MAX_REPLY_CHARACTERS = 20_000
"""Longest reply that is handed on, thoughts not counted; a longer one is runaway output."""

LONGEST_WAIT = 600.0
"""Seconds. A server that asks for more has closed for the day; the run then stops instead of sleeping."""

ENDING = {
    301: "the address redirects; name the final one",
    302: "the address redirects; name the final one",
    307: "the address redirects; name the final one",
    308: "the address redirects; name the final one",
    401: "the key is refused",
    402: "payment is required",
    403: "access is denied",
    404: "the address or the model is unknown",
    405: "the address does not accept requests",
}
"""Statuses that no other request will escape."""

EXHAUSTED = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated")
"""Codes that servers send as 429 although waiting will not help."""

FLAGGED = ("content_filter", "content_policy_violation", "data_inspection_failed")
"""Codes of a request whose text a filter before the model refused."""

PASSING = (408, 409, 425, 429)
"""Statuses below 500 worth another attempt."""

REFUSED = (429, 503, 529)
"""Statuses of a server that has too much to do: everyone pauses."""

TOO_LARGE = re.compile(r"(?i)\brequest too large\b")
"""How OpenAI refuses for its rate what it will never take: all workers would wait for minutes, and in vain."""

UNPROCESSED = (400, 422)
"""Statuses of a request that the server understood but will not do."""

CUT, REFUSAL, FILTERED = "reply cut at the token limit", "refusal", "content filter"
CUT_THINKING = f"{CUT} while thinking"

FINISHED_BADLY = {"length": CUT, "content_filter": FILTERED, "sensitive": FILTERED}
"""Ways to end a reply. Of a cut one the text is kept: what it was asked for may stand before the cut."""

BROKEN_OFF = ("error", "network_error", "insufficient_system_resource", "abort")
"""How routers and servers end a reply that they could not finish; what there is of it is no reply."""

ABOUT_THE_ROW = (REFUSAL, FILTERED)
"""Reasons that say something of a row, and nothing of whether the model can be read."""

UNTAKEN = re.compile(
    r"(?i)unsupported|(?:not|n't) support|unrecognized|unknown (?:name|field|argument|parameter|variant)|unavailable"
    r"|not permitted|not allowed|only .{1,20} is allowed|deprecated"
)
FIELD = re.compile(r"(?i)\b(max_tokens|temperature|seed|response[_ ]format)\b")
"""How servers say that a model does not take a field of the request, and the fields that it can be asked without."""

REASONING = ("reasoning_content", "reasoning")
"""Where servers with a parser of thoughts put what stood between `<think>` and `</think>`."""

STREAM = (b"data:", b"event:", b": ")
"""How a stream of events begins."""

MAX_MESSAGE = 200
"""Characters of a server's error message that are kept."""

WORDS, MAX_WORDS_DEPTH = ("message", "msg", "error", "detail"), 6
"""Under which keys the words of an error stand, and how deep they may lie."""


@dataclass(frozen=True)
class Verdict:
    """What one attempt came to.

    Attributes:
        text: The reply, if there is a usable one; with an error, what came before it spoiled.
        error: Why not.
        answered: The model answered and was paid.
        passing: Another attempt may succeed.
        lost: No connection was made, so the fault cannot lie with what was asked.
        refused: The server has too much to do.
        wait: Seconds that the server asks to wait.
        stops: No further request can succeed.
        said: The server's words, where they are no part of the error: they differ from row to row.
        untaken: Field of the request that the model does not take.
        reasoning: What the model thought, where the server parts it from the text.
    """

    text: str | None = None
    error: str | None = None
    answered: bool = False
    passing: bool = False
    lost: bool = False
    refused: bool = False
    wait: float | None = None
    stops: bool = False
    said: str = ""
    untaken: str | None = None
    reasoning: str | None = None


def read_body(body: bytes, secrets: Iterable[str] = ()) -> Verdict:
    """Read the body of a successful response strictly; some servers report an error in one.

    Args:
        body: What came.
        secrets: Values to hide in the words of such an error.
    """
    try:
        response = json.loads(body)
        choice = response["choices"][0]
        finish = choice.get("finish_reason")
        finish = finish if isinstance(finish, str) else None
        if finish in BROKEN_OFF:
            return _judge_odd(choice, secrets)
        # Nothing was written before the token limit or the filter: some servers then send no message.
        message = choice.get("message") or {} if finish in FINISHED_BADLY else choice["message"]
        content = message.get("content")
    except (ValueError, RecursionError):
        if body.lstrip().startswith(STREAM):  # it would be paid for at each attempt
            return Verdict(error="response is a stream, though none was asked for; name a server that sends none")
        return Verdict(error="response is not JSON", passing=True)
    except (KeyError, IndexError, TypeError, AttributeError):
        return _judge_odd(error_body(body), secrets)
    return _judge_message(message, _joined(content), finish)


def _judge_message(message: Mapping[str, Any], text: Any, finish: str | None) -> Verdict:
    """What a message with such a text and finish reason means."""
    if finish == "length":
        error = CUT_THINKING if _is_thinking(text) else CUT
        written = text if isinstance(text, str) else ""
        return Verdict(text=written, error=error, answered=True, reasoning=_reasoning(message))
    if finish in FINISHED_BADLY:
        return Verdict(error=FINISHED_BADLY[finish], answered=True)
    if message.get("refusal"):
        return Verdict(error=REFUSAL, answered=True)
    if not isinstance(text, str) or not text.strip():
        return Verdict(error="empty reply", answered=True)
    if len(text.rpartition(THINK_CLOSE)[2]) > MAX_REPLY_CHARACTERS:
        return Verdict(error="reply too long", answered=True)
    try:
        text.encode()
    except UnicodeEncodeError as broken:  # half of a pair of escapes, which no file can hold
        return Verdict(text=text[: broken.start], error="reply holds a lone surrogate", answered=True)
    return Verdict(text=text, answered=True, reasoning=_reasoning(message))


def _reasoning(message: Mapping[str, Any]) -> str | None:
    thoughts = [message.get(name) for name in REASONING]
    return next((one for one in thoughts if isinstance(one, str) and one.strip()), None)


def _joined(content: Any) -> Any:
    """The text of a reply in parts, as models that think first may send it; thoughts are parts of another kind."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _judge_odd(body: Any, secrets: Iterable[str]) -> Verdict:
    """What a response without a message means: the error that it names, if it names one."""
    error = body.get("error") if isinstance(body, dict) else None
    status = error.get("code") if isinstance(error, dict) else None
    if isinstance(status, int) and 400 <= status < 600:
        return judge_error(status, body, None, secrets)
    said = _error_fields(body, secrets)[1]
    broken = isinstance(body, dict) and body.get("finish_reason") in BROKEN_OFF
    reason = "reply broken off by the server" if broken else "response has no message"
    return Verdict(error=reason + (f" ({said})" if said else ""), passing=True)


def _is_thinking(text: Any) -> bool:
    """Whether a cut text has not come to what was asked for; some servers leave the thoughts out."""
    if not isinstance(text, str):
        return True
    return not text.strip() or (text.lstrip().startswith(THINK_OPEN) and THINK_CLOSE not in text)


def error_body(body: bytes) -> Any:
    """The JSON of an error's body, or its text; `None` if it is a page or nothing to read."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        text = body[: 2**16].decode("utf-8", "replace").strip()
        return None if not text or text[0] in "<[{" else text


def judge_error(status: int, body: Any, wait: float | None, secrets: Iterable[str] = ()) -> Verdict:
    """What an error response means.

    Args:
        status: HTTP status.
        body: Parsed body.
        wait: Seconds that the response asks to wait, if it does.
        secrets: Values to hide: some servers repeat the key that they refuse.
    """
    code, message = _error_fields(body, secrets)
    said = f" ({message})" if message else ""
    if status in (*UNPROCESSED, 403) and _is_flagged(body):
        return Verdict(error=FILTERED)
    if status in ENDING:
        return Verdict(error=f"{status}: {ENDING[status]}{said}", stops=True)
    if code in EXHAUSTED:
        return Verdict(error=f"{status}: the quota is exhausted{said}", stops=True)
    if wait is not None and wait > LONGEST_WAIT:
        return Verdict(error=f"{status}: the server asks to wait {wait:.0f} s; run again then", stops=True)
    if status == 429 and TOO_LARGE.search(message):
        return Verdict(error="status 429: the request is larger than the limit of tokens per minute")
    if status in PASSING or status >= 500:
        return Verdict(error=f"status {status}", passing=True, refused=status in REFUSED, wait=wait, said=said)
    untaken = FIELD.search(message) if status in UNPROCESSED and UNTAKEN.search(message) else None
    return Verdict(error=f"status {status}{said}", untaken=untaken and untaken[1].lower().replace(" ", "_"))


def _is_flagged(body: Any) -> bool:
    """Whether a request was refused for what its row says (OpenRouter, Azure, Alibaba); any other row may pass."""
    error = body.get("error") if isinstance(body, dict) else None
    more = error.get("metadata") if isinstance(error, dict) else None
    named = isinstance(error, dict) and isinstance(error.get("code"), str) and error["code"] in FLAGGED
    return named or (isinstance(more, dict) and "flagged_input" in more)


def _error_fields(body: Any, secrets: Iterable[str]) -> tuple[str, str]:
    """Code and message of an error body in the usual shapes, else nothing."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    error = body.get("error", body.get("detail")) if isinstance(body, dict) else None
    holder = error if isinstance(error, dict) else body if isinstance(body, dict) else {}
    codes = [holder[name] for name in ("code", "type") if isinstance(holder.get(name), str)]
    code = next((code for code in codes if code in EXHAUSTED), "")
    # Hidden before it is cut: half a key would not be known for one.
    text = without_secrets(_words(body), secrets)[:MAX_MESSAGE]
    return code, "".join(character if character.isprintable() else " " for character in text).strip()


def _words(said: Any, depth: int = 0) -> str:
    """What an error says: a text, a list of faults with their places, or one of these within another."""
    if isinstance(said, str) or depth > MAX_WORDS_DEPTH:
        return said if isinstance(said, str) else ""
    if isinstance(said, list):
        return "; ".join(words for part in said if (words := _words(part, depth + 1)))
    if not isinstance(said, dict):
        return ""
    words = next((words for name in WORDS if (words := _words(said.get(name), depth + 1))), "")
    place, more = said.get("loc"), said.get("metadata")
    if words and isinstance(place, list):
        words = f"{'.'.join(str(part) for part in place if isinstance(part, str | int))}: {words}"
    if words and isinstance(more, dict) and isinstance(more.get("raw"), str):  # what the server behind a router said
        words = f"{words}: {more['raw']}"
    return words
