"""Does fine-tuning on a little distilled data beat the whole raw pool at the same budget?

    python -m benchmarks.proof --tier smoke     checks the machinery, about a minute
    python -m benchmarks.proof --tier small     answers the question, under 25 minutes on two cores
    python -m benchmarks.proof --tier full      more seeds, larger models, hours

Everything is offline: facts from the standard library, models from scratch, the package's own stages in between. The
baseline is the student taught with the whole raw pool. The answer is published as it comes out (docs/proof.md).
"""

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path


GAP_TARGET = 0.0


def main() -> int:
    """Run a tier and print its report; exit code 1 if a check that must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=["smoke", "small", "full"], default="smoke")
    parser.add_argument("--output", type=Path, help="folder that keeps all files; a killed run goes on from it")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        return run(options.tier, options.output or Path(scratch), options.workers)


def run(name: str, folder: Path, workers: int) -> int:
    """Run a tier in a folder."""
    from benchmarks.proof import arms, job, publication, statistics, tiers
    from benchmarks.proof.audit import audit

    tier, start = tiers.TIERS[name], time.perf_counter()

    def log(said: str) -> None:
        print(f"[{time.perf_counter() - start:5.0f} s] {said}", file=sys.stderr, flush=True)

    results = job.run_all(tier, folder, workers, log)
    worlds = publication.read_worlds(folder, tier)
    for line in audit(worlds, results, job.world(tier), tier):
        log(f"ok: {line}")
    summary = statistics.summarize(results)
    print(publication.publish(folder, name, tier, summary, worlds))
    if name == "smoke":
        print(f"proof: machinery ok ({time.perf_counter() - start:.0f} s)")
        return 0
    low, high = summary["gap_closed_interval"]
    closed = summary["arms"][arms.DISTILLED]["gap_closed"]
    broken = [line for line in publication.health(summary) if line.startswith("BROKEN")]
    print(
        f"proof: gap_closed={closed:.2f} target>{GAP_TARGET} {'ok' if low > GAP_TARGET else 'short'} "
        f"(mean of {summary['seeds']} seeds, 95 % {low:.2f}-{high:.2f}; {time.perf_counter() - start:.0f} s)"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
