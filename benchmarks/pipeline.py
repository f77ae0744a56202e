"""The whole pipeline without the models' own time: load, cluster, linearize, parse, select, write.

Encoder, judge and distiller are stubs that cost next to nothing, and what they cost is measured and taken off. The
check of facts, which reads every word of every text, is no part of the target and is printed on its own. Rows are made
up: groups of about four pairs that share most of their words, a fifth of them good. Each size runs in a process of its
own, which tells its peak memory.

    python benchmarks/pipeline.py                      # 100,000 and 300,000 rows
    python benchmarks/pipeline.py --profile            # where the time goes, at the smaller size
"""

import argparse
import cProfile
import json
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars

from hf_lmmixup.pipeline import run
from hf_lmmixup.preparation import Tools
from hf_lmmixup.prompts import format_completion
from hf_lmmixup.recipe import DistillerRecipe, Recipe, SelectRecipe
from hf_lmmixup.records import RATED, Outcome
from hf_lmmixup.writers import Writer


SIZES = (100_000, 300_000)
ROWS_TARGET, MEMORY_TARGET = 20_000, 1.5
GROUP, WIDTH = 4, 64
SUBJECT = 75
"""Groups of a subject: the vectors lie by subjects, then by groups, as those of `clustering.py --scale` do."""

WORDS = "tides moon ocean water pull earth gravity coast harbor bread yeast dough oven flour heat engine steam".split()


class Stubs:
    """Encoder, judge and distiller of next to no cost; `seconds` is what they cost all the same."""

    name, revision = "stub", None

    def __init__(self, groups: int) -> None:
        self.seconds = 0.0
        rng = np.random.default_rng(0)
        subjects = rng.standard_normal((groups // SUBJECT + 1, WIDTH), np.float32)
        own = rng.standard_normal((groups + 1, WIDTH), np.float32)
        self.centers = 0.6 * subjects[rng.integers(0, len(subjects), groups + 1)] + 0.65 * own
        self.noise = 0.25 * rng.standard_normal((4096, WIDTH), np.float32)

    def encode(self, texts: Any) -> np.ndarray:
        """A vector near the one of the text's group, which stands behind `case`."""
        started = time.perf_counter()
        groups = [int(text.partition(" case ")[2].partition(" ")[0] or -1) for text in texts]
        vectors = self.centers[groups] + self.noise[[zlib.crc32(text.encode()) % 4096 for text in texts]]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.seconds += time.perf_counter() - started
        return vectors

    def judge(self, rows: Dataset) -> Outcome:
        """Rows with the word `good` are good."""
        started = time.perf_counter()
        n = len(rows)
        scores = [5 if "good" in text.split(" ", 2)[:2] else 1 for text in rows["prompt"][:]]
        columns = {
            "rating": pa.nulls(n, RATED.arrow_schema.field("rating").type),
            "score": pa.array(scores, pa.int32()),
        }
        columns["rating_error"] = pa.nulls(n, pa.string())
        for name, values in columns.items():
            rows = rows.add_column(name, values, feature=RATED[name])
        self.seconds += time.perf_counter() - started
        return Outcome(rows)

    def generate(self, conversations: Any, *, seeds: Any = None, on_reply: Any = None) -> list[str]:
        """The first pair of each prompt, called good."""
        started, replies = time.perf_counter(), []
        for messages in conversations:
            question, _, rest = messages[-1]["content"].partition("Q: ")[2].partition("\nA: ")
            answer = rest.partition("\n")[0]
            replies.append(format_completion("All ask the same.", f"Q: a good {question}\nA: {answer}"))
        self.seconds += time.perf_counter() - started
        if on_reply is not None:
            for place, reply in enumerate(replies):
                on_reply(place, reply)
        return replies


def write_rows(path: Path, count: int) -> None:
    """Made-up raw rows as Parquet."""
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, max(1, count // GROUP), count))
    topics = rng.integers(0, len(WORDS), (count // GROUP + 1, 12))
    prompts, completions = [], []
    for number, group in enumerate(groups.tolist()):
        words = " ".join(WORDS[topic] for topic in topics[group])
        quality = "good" if number % 5 == 0 else "weak"
        prompts.append(f"{quality} case {group} question {number} on {words}?")
        completions.append(f"In a {quality} way the answer {number} of case {group} is that {words} go with {words}.")
    order = rng.permutation(count)
    texts = {"prompt": [prompts[i] for i in order], "completion": [completions[i] for i in order]}
    pq.write_table(pa.table(texts), path)


def measure(folder: Path, count: int, profile: bool) -> None:
    """One run in this process; prints its figures."""
    disable_progress_bars()
    source = folder / "rows.parquet"
    stubs = Stubs(count // GROUP)
    recipe = Recipe(
        "benchmark",
        input=str(source),
        output=str(folder / "run"),
        distiller=DistillerRecipe(mode="training-free", model="stub"),
        select=SelectRecipe(min_score=4),
    )
    tools = Tools(stubs, judge=stubs.judge, writer=Writer("stub", stubs.generate))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    started = time.perf_counter()
    finished = run(recipe, tools=tools)
    seconds = time.perf_counter() - started
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    costs = json.loads((folder / "run" / "costs.json").read_text())
    stages = {entry["stage"]: entry["seconds"] for entry in costs.values()}
    figures = {
        "seconds": seconds,
        "stub": stubs.seconds,
        "check": stages["check"],
        "peak_mb": peak / 1024,
        "start_mb": before / 1024,
        "rows_out": finished.ledger["kept"] + finished.ledger["distilled_rows"],
    }
    print(json.dumps(figures | {"stages": stages}))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.sizes[0], arguments.profile)
        return
    rates, memory, checks = {}, {}, {}
    for count in arguments.sizes[:1] if arguments.profile else arguments.sizes:
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory() as folder:
                # In a process of its own: who starts a process hands its peak memory down.
                writer = get_context("spawn").Process(target=write_rows, args=(Path(folder) / "rows.parquet", count))
                writer.start()
                writer.join()
                command = [sys.executable, __file__, "--measure", folder, "--sizes", str(count)]
                command += ["--profile"] if arguments.profile else []
                output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            print(output if arguments.profile else output.splitlines()[-1], flush=True)
            found = json.loads(output.splitlines()[-1])
            rates.setdefault(count, []).append(count / (found["seconds"] - found["stub"] - found["check"]))
            checks.setdefault(count, []).append(count / found["check"])
            memory.setdefault(count, []).append(found["peak_mb"])
    largest = rates[max(rates)]
    for count in rates:
        print(f"{count} rows: {statistics.median(rates[count]):,.0f} rows/s, peak {max(memory[count]):,.0f} MB")
        print(f"{count} rows: facts checked at {statistics.median(checks[count]):,.0f} raw rows/s")
    rate = statistics.median(largest)
    growth = max(memory[max(memory)]) / max(memory[min(memory)])
    print(f"memory: {growth:.2f} times as much for {max(memory) / min(memory):.0f} times the rows")
    verdict = "ok" if rate >= ROWS_TARGET and growth <= MEMORY_TARGET else "short"
    spread = f"{min(largest):.0f}-{max(largest):.0f}"
    print(f"pipeline: ratio={rate:.0f} target={ROWS_TARGET} {verdict} (median of {len(largest)}, spread {spread})")


if __name__ == "__main__":
    main()
