"""Peak memory of loading one large MIXTURE file: streamed by `load_dataset("mixture")` against `json.load`.

Writes a JSON array of `--size` bytes with rows of the published form into a temporary folder, then loads it twice,
each time in a process of its own. The baseline does the least that a reader without streaming can do: parse the file.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


STREAMED = """
import hf_lmmixup.mixture as mixture
from datasets import load_dataset, disable_progress_bars
disable_progress_bars()
mixture.register()
print(len(load_dataset("mixture", "sft", split="train", data_dir=FOLDER, cache_dir=FOLDER + "/cache")))
"""
BASELINE = """
import json
with open(FOLDER + "/merged_train_qa_noisy.json") as stream:
    print(len(json.load(stream)))
"""
MEASURE = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"


def write_file(path: Path, size: int) -> int:
    """Write rows until the file has `size` bytes; returns their number."""
    text = "Q: why do tides occur\nA: the Moon pulls the oceans, number {}\n\n" * 40
    rows = 0
    with path.open("w") as stream:
        stream.write("[")
        while stream.tell() < size:
            row = {
                "id": rows,
                "instruction": "Merge.",
                "input": text.format(*range(rows, rows + 40)),
                "output": f"Q: Why {rows}?\nA: Because.",
                "cot": "They say the same.",
                "source": "tides",
            }
            stream.write((",\n" if rows else "") + json.dumps(row))
            rows += 1
        stream.write("]")
    return rows


def run(script: str, folder: str) -> tuple[int, int, float]:
    """Rows read, peak memory in bytes and seconds of one process."""
    start = time.perf_counter()
    code = f"FOLDER = {folder!r}\n{script}{MEASURE}"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return int(output[0]), int(output[1]), time.perf_counter() - start


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=10**9, help="bytes of the file (default: 1 GB)")
    parser.add_argument("--repeats", type=int, default=1, help="how often each side is measured")
    parser.add_argument("--folder", help="where the file is written; a temporary folder by default")
    options = parser.parse_args()
    ratios, peaks = [], []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows = write_file(Path(folder) / "merged_train_qa_noisy.json", options.size)
            (read, peak, seconds), (parsed, whole, parse) = run(STREAMED, folder), run(BASELINE, folder)
        assert rows == read == parsed
        print(f"{rows} rows: streamed {peak / 1e6:.0f} MB, {seconds:.1f} s, whole {whole / 1e6:.0f} MB, {parse:.1f} s")
        ratios.append(whole / peak)
        peaks.append(peak)
    verdict = "ok" if max(peaks) < 10**9 and statistics.median(ratios) >= 1 else "short"
    print(f"peak of the streamed load: {max(peaks) / 1e6:.0f} MB, limit 1000 MB")
    print(
        f"mixture_load: ratio={statistics.median(ratios):.2f} target=1 {verdict} "
        f"(median of {len(ratios)}, spread {min(ratios):.2f}-{max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
