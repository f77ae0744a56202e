"""A generator with an event loop of its own, driven from a thread that may run another one, as a notebook's does.

One use: `yield from anywhere(replies)`.
"""

import asyncio
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any, TypeVar

from hf_lmmixup.pacing import NAP


Item = TypeVar("Item")


def anywhere(items: Generator[Item, None, None]) -> Iterator[Item]:
    """What a generator gives, which runs in a thread of its own where this one runs an event loop already."""
    return _driven_elsewhere(items) if _is_loop_running() else items


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _driven_elsewhere(items: Generator[Item, None, None]) -> Iterator[Item]:
    with ThreadPoolExecutor(1) as thread:
        try:
            while (item := _result(thread.submit(next, items, None))) is not None:
                yield item
        finally:
            _result(thread.submit(items.close))


def _result(future: Future[Any]) -> Any:
    """A future's result, waited for in short naps, so that signals are heard in between."""
    while not wait_for([future], NAP).done:
        pass
    return future.result()
