"""The stages of one run directory: what is finished is read, what is missing is done, timed and kept.

What a stage took is written beside the stages as soon as it is finished, one entry each::

    costs.json: {"4_cluster": {"stage": "cluster", "seconds": 2.1, "rows": 301, "disk": 80412}, ...}

Tokens and money (US dollars) are there where a model was asked.
"""

import ctypes
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Features

from hf_lmmixup.distilled_rows import DistilledOutcome
from hf_lmmixup.mapped_files import let_go_of_pages
from hf_lmmixup.pacing import steady
from hf_lmmixup.records import Outcome, Progress
from hf_lmmixup.run_directory import ORDER, RunDirectory, read_json, write_json


logger = logging.getLogger(__name__)

COSTS, PLAN = "costs.json", "plan.json"

ARROW_MEMORY = pa.default_memory_pool()
"""Where Arrow takes memory from outside of a run."""

HEAP_OPTIONS = {-1: 8 << 20, -3: 32 << 20}
"""Of glibc's `mallopt`: `M_TRIM_THRESHOLD`, the free bytes that the heap of a thread may keep, and `M_MMAP_THRESHOLD`,
the size from which a request gets pages of its own. Left alone, both rise as memory is freed, to 64 and 32 MB."""


class Stages:
    """The stages of a run.

    Args:
        directory: The run directory.
        progress: Told what is going on.
    """

    def __init__(self, directory: RunDirectory, progress: Progress) -> None:
        self.directory, self.progress = directory, progress

    def outcome(
        self,
        name: str,
        title: str,
        features: Features,
        work: Callable[[], Outcome],
        *,
        new_texts: bool = True,
        by_id: bool = False,
    ) -> Outcome:
        """The outcome of a stage; `work` is called if there is none yet.

        Args:
            name: The stage.
            title: What is done, for people.
            features: Its columns.
            work: Does it.
            new_texts: Whether the rows are others than those loaded.
            by_id: Whether the rows are to be put in order of their id.
        """
        if not self.directory.has(name):
            self.progress(title, 0, 0)
            with self.timed(name) as facts, steady():
                done = work()
                attempts = done.completions if isinstance(done, DistilledOutcome) else None
                self.directory.save_outcome(name, done, new_texts=new_texts, by_id=by_id, attempts=attempts)
                facts["rows"] = len(done.dataset) + len(done.dropped)
                del done
            logger.info("%s took %.1f s.", title, facts["seconds"])
        return self.directory.load_outcome(name, features)

    @contextmanager
    def timed(self, name: str) -> Iterator[dict[str, Any]]:
        """Measure a block and write its cost down when it ends without an error; it may add `rows` and the like."""
        facts: dict[str, Any] = {"stage": readable(name)}
        free_memory()
        started = time.perf_counter()
        yield facts
        facts |= {"seconds": round(time.perf_counter() - started, 3), "disk": disk_use(self.directory.stage(name))}
        self.spent(name, **facts)
        free_memory()

    def spent(self, name: str, **facts: Any) -> None:
        """Write down what a stage took, beside what is known of it."""
        entries = costs_of(self.directory.path)
        entries[name] = entries.get(name, {}) | facts
        write_json(self.directory.path / COSTS, entries)


@contextmanager
def plain_memory() -> Iterator[None]:
    """Within this block Arrow takes memory from the C library: its own allocator keeps megabytes that stages freed.

    So does glibc for each thread, which is told to keep less; that lasts for as long as the process lives.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        for option, size in HEAP_OPTIONS.items():
            ctypes.CDLL(None).mallopt(option, size)
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(ARROW_MEMORY)


def free_memory() -> None:
    """Give back what was freed: steps differ in the sizes they ask for, and pieces of one seldom fit another."""
    let_go_of_pages()
    for pool in (ARROW_MEMORY, pa.system_memory_pool()):  # the latter stands for the C library's
        pool.release_unused()


def costs_of(run: Path) -> dict[str, dict[str, Any]]:
    """What the stages of a run directory took, by stage, in their order; empty where nothing is written down."""
    path = run / COSTS
    entries: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}
    return {name: entries[name] for name in sorted(entries, key=(*ORDER, *entries).index)}


def read_plan(run: Path) -> list[dict[str, Any]]:
    """What `lmmixup plan` expected the stages of a run to take; empty where nobody asked."""
    path = run / PLAN
    plan: list[dict[str, Any]] = read_json(path) if path.is_file() else []
    return plan


def disk_use(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def readable(name: str) -> str:
    """The name of a stage in words: `8_rate_again` is `rate again`."""
    return name.partition("_")[2].replace("_", " ")
