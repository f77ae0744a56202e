"""When to send the next request: one shared pause for all workers after a refusal, spread out with jitter.

A server that answers 429 or 503 may say how long to wait, in seconds or as a date. All workers of a run then wait, not
only the one that was told; afterwards they come back one after the other, so that the server is not hit by all of them
at once.

One refusal of 64 workers, `Retry-After: 4`: nobody sends for 4 s, then the workers return evenly over the next 2 s.
"""

import asyncio
import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime


LONGEST_BACKOFF = 20.0
"""Seconds between attempts where the server names no time."""

GARBAGE = 100_000
"""Objects made between two looks for cycles."""

NAP = 0.1
"""Seconds between looks at whether the run is to end, while waiting."""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait, from `Retry-After` as seconds or as an HTTP date.

    A date is compared with the server's own `Date`, so that a wrong clock on this machine does no harm.

    Args:
        headers: Response headers, by lower-case name.

    Returns:
        Seconds, not negative; `None` if the header is absent or unreadable.
    """
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        until, now = _timestamp(value), _timestamp(headers.get("date", ""))
        if until is None:
            return None
        seconds = until - (time.time() if now is None else now)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _timestamp(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


class Pacing:
    """The pace of one run.

    Args:
        backoff: Seconds that the first unguided wait may last; doubles with each further attempt.
        jitter: Where the jitter is drawn from. It decides when requests are sent, never what comes out.
    """

    def __init__(self, backoff: float, jitter: random.Random | None = None) -> None:
        self.backoff = backoff
        self._jitter = jitter or random.Random()
        self._open_at = 0.0
        self._spread = 0.0
        self._refusals = 0

    def refused(self, wait: float | None) -> None:
        """Pause everyone: for as long as the server asked, or for a growing time if it did not say, or said none.

        Refusals of requests that were under way when the pause began do not lengthen an unguided pause.
        """
        now = time.monotonic()
        if not wait:
            if now < self._open_at:
                return
            wait = min(LONGEST_BACKOFF, self.backoff * 2**self._refusals)
            self._refusals += 1
        if now + wait > self._open_at:
            self._open_at = now + wait
            self._spread = min(LONGEST_BACKOFF, wait / 2)

    def succeeded(self) -> None:
        """A request went through: the next unguided pause is short again."""
        self._refusals = 0

    async def turn(self, halted: Callable[[], bool]) -> None:
        """Wait until the shared pause is over, plus a random share of the time over which workers return."""
        while time.monotonic() < self._open_at and not halted():
            until = self._open_at
            await nap(until - time.monotonic() + self._jitter.uniform(0, self._spread), halted)

    async def back_off(self, attempt: int, halted: Callable[[], bool]) -> None:
        """Wait before another attempt of one request: a random time up to `backoff * 2^(attempt - 1)` seconds."""
        await nap(self._jitter.uniform(0, min(LONGEST_BACKOFF, self.backoff * 2 ** (attempt - 1))), halted)


@contextmanager
def steady() -> Iterator[None]:
    """Within this block the garbage collector passes over what was there before, and looks less often at the rest.

    To look through all that torch, datasets and pyarrow bring takes 70 ms. No request goes out in that time, and when
    it is over the workers go in step, so that many replies come at once and the rest of the time none. And rows are
    made by the hundred thousand, none of them a cycle: to look for one each 700 objects takes a tenth of the time. The
    few cycles that there are, tables among them, are collected at the end.
    """
    if gc.get_freeze_count():  # the program has set objects aside itself, and would get them back
        yield
        return
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GARBAGE, *before[1:])
    try:
        yield
    finally:
        gc.collect()  # of what is new, which takes little
        gc.set_threshold(*before)
        gc.unfreeze()


async def nap(seconds: float, halted: Callable[[], bool]) -> None:
    """Sleep, but wake up soon after `halted` turns true."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not halted():
        await asyncio.sleep(min(left, NAP))
