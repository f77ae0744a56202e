"""Requests to the Hub that fail for a while: which failures pass, and how long to wait for that.

    insist(lambda: api.repo_info("ada/pile"))

Only requests that may be repeated belong here; a commit is repeated by its caller, after looking at what is there.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError

from hf_lmmixup.secrecy import without_secrets


logger = logging.getLogger(__name__)

Result = TypeVar("Result")

PASSING = frozenset([408, 409, 412, 425, 429, 500, 502, 503, 504])
"""Answers that may be another one a little later: busy, changed meanwhile, too many requests, broken for now."""

ATTEMPTS = 7
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""The wait doubles from the first to the longest; its length is drawn, so that clients do not come back together."""


def passes(error: Exception) -> bool:
    """Whether a failure may be gone a little later: a lost connection, or an answer out of `PASSING`."""
    if isinstance(error, HfHubHTTPError):
        return error.response is None or error.response.status_code in PASSING
    return isinstance(error, HTTPError)


def wait(error: Exception, attempt: int) -> None:
    """Wait after failure number `attempt` (from 0): as long as the server asks for, or a drawn time."""
    asked = _asked_wait(error)
    drawn = random.uniform(0.5, 1.0) * FIRST_WAIT_S * 2**attempt
    seconds = min(LONGEST_WAIT_S, max(asked, drawn))
    logger.warning("The Hub failed (%s); next attempt in %.1f s.", first_line(error), seconds)
    time.sleep(seconds)


def insist(request: Callable[[], Result]) -> Result:
    """Make a request again until it succeeds, fails for good, or has failed `ATTEMPTS` times.

    Raises:
        HTTPError: The last failure.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return request()
        except HTTPError as error:
            if not passes(error):
                raise
            wait(error, attempt)
    return request()


def first_line(error: Exception) -> str:
    """What a failure says, in one line and without secrets."""
    return without_secrets((str(error).strip() or type(error).__name__).splitlines()[0])


def _asked_wait(error: Exception) -> float:
    response = getattr(error, "response", None)
    value = response.headers.get("Retry-After", "") if response is not None else ""
    return float(value) if value.isascii() and value.isdigit() else 0.0
