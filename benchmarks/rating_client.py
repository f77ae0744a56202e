"""Rating through an endpoint: requests per second against the ideal, and memory from 10,000 to 100,000 rows.

    python benchmarks/rating_client.py [--rows 6000] [--repeats 5] [--memory-rows 100000]

A server in a process of its own answers every request after 50 ms. With 64 workers the ideal rate is 64 / 0.05 =
1,280 requests a second. The baseline is the usual way: `AsyncOpenAI`, a semaphore, `asyncio.gather` over all rows,
results in memory. Ours is `rate`: with journal, strict parsing, pacing and output columns.
"""

import argparse
import asyncio
import json
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


WORKERS = 64
LATENCY = 0.05
IDEAL = WORKERS / LATENCY
TARGET = 0.9
MEMORY_TARGET = 1.3

REPLY = {"rarity": 3, "complexity": 4, "informativeness": 5, "overall": 6}
BODY = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": json.dumps(REPLY)}}
        ],
        "usage": {"prompt_tokens": 300, "completion_tokens": 30, "total_tokens": 330},
    }
).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Connection(asyncio.Protocol):
    """The least that a server can do: find the end of each request, answer it after the latency."""

    def __init__(self, latency: float) -> None:
        self.latency, self.waiting = latency, bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self.transport = transport

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self.waiting += data
        while (end := self.waiting.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.waiting[:end]).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            if len(self.waiting) < end + 4 + length:
                return
            del self.waiting[: end + 4 + length]
            asyncio.get_running_loop().call_later(self.latency, self.transport.write, RESPONSE)


async def serve(latency: float) -> None:
    """Run the server until it is killed; print its address first."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(latency), "127.0.0.1", 0, backlog=256)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def write_rows(folder: Path, count: int) -> str:
    """Rows of about 400 characters in an Arrow file; returns its path."""
    from datasets import Dataset, disable_progress_bars

    from hf_lmmixup.records import LOADED, row_id

    disable_progress_bars()

    def make() -> Iterator[dict[str, str]]:
        for number in range(count):
            prompt = f"Explain number {number} in plain words, with one example."
            completion = f"Number {number} is what follows {number - 1}. " + "It can be counted on. " * 14
            yield {"id": row_id(prompt, completion), "prompt": prompt, "completion": completion, "source": "made"}

    Dataset.from_generator(make, features=LOADED, cache_dir=str(folder / "cache")).save_to_disk(
        folder / f"rows-{count}"
    )
    return str(folder / f"rows-{count}")


def rate_ours(rows_path: str, url: str) -> float:
    """Rows per second of `rate`."""
    from datasets import load_from_disk

    from hf_lmmixup.endpoint import EndpointModel
    from hf_lmmixup.rating import rate

    logging.getLogger("hf_lmmixup").setLevel(logging.ERROR)  # the server's one reply is a collapse, as it should say
    dataset = load_from_disk(rows_path)
    with tempfile.TemporaryDirectory() as directory:
        begun = time.perf_counter()
        outcome = rate(dataset, EndpointModel("stub", url, concurrency=WORKERS), directory)
        seconds = time.perf_counter() - begun
    assert outcome.dataset[0]["score"] == 2 and not any(outcome.dataset["rating_error"])
    return len(dataset) / seconds


def rate_plainly(rows_path: str, url: str) -> float:
    """Rows per second of the usual way."""
    import openai
    from datasets import load_from_disk

    from hf_lmmixup.rating_prompt import FOUR_AXES, RATING_SCHEMA

    dataset = load_from_disk(rows_path)
    form = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": RATING_SCHEMA}}

    async def ask_all() -> list[dict]:
        slots = asyncio.Semaphore(WORKERS)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=5) as client:

            async def ask(row: dict) -> dict:
                async with slots:
                    reply = await client.chat.completions.create(
                        model="stub",
                        messages=FOUR_AXES.messages(f"Q: {row['prompt']}\nA: {row['completion']}"),
                        temperature=0.0,
                        response_format=form,
                    )
                return json.loads(reply.choices[0].message.content)

            return await asyncio.gather(*[ask(row) for row in dataset])

    begun = time.perf_counter()
    ratings = asyncio.run(ask_all())
    seconds = time.perf_counter() - begun
    assert ratings[0]["overall"] == 6
    return len(ratings) / seconds


def peak_megabytes(rows_path: str, url: str) -> float:
    """Peak memory of a process that rates these rows."""
    command = [sys.executable, __file__, "--one", rows_path, url]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def start_server(latency: float) -> tuple[subprocess.Popen, str]:
    """The server's process and its address."""
    server = subprocess.Popen([sys.executable, __file__, "--serve", str(latency)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def verdict(name: str, value: float, target: float, good: bool, values: list[float]) -> None:
    """Print the line that sums up one figure."""
    spread = f"{min(values):.2f}-{max(values):.2f}"
    state = "ok" if good else "short"
    print(f"{name}: ratio={value:.2f} target={target} {state} (median of {len(values)}, spread {spread})")


def measure_memory(folder: Path, rows: int) -> None:
    """Peak memory at all rows over peak memory at a tenth of them, each in a process of its own."""
    server, url = start_server(0.0)
    try:
        small, large = (peak_megabytes(write_rows(folder, count), url) for count in (rows // 10, rows))
    finally:
        server.kill()
        server.wait()
    print(f"peak memory: {small:.0f} MB at {rows // 10:,} rows, {large:.0f} MB at {rows:,} rows")
    ratio = large / small
    verdict("rating_client_memory", ratio, MEMORY_TARGET, ratio <= MEMORY_TARGET, [ratio])


def measure_speed(folder: Path, rows: int, repeats: int) -> None:
    """The share of the ideal rate, ours and the usual way in turn."""
    rows_path, warm_up = write_rows(folder, rows), write_rows(folder, 200)
    server, url = start_server(LATENCY)
    ours, plain = [], []
    try:
        for way in (rate_ours, rate_plainly):
            way(warm_up, url)  # imports and connections
        for _ in range(repeats):
            plain.append(rate_plainly(rows_path, url) / IDEAL)
            ours.append(rate_ours(rows_path, url) / IDEAL)
    finally:
        server.kill()
        server.wait()
    usual, best = statistics.median(plain), statistics.median(ours)
    print(f"ideal {IDEAL:.0f} rows/s; the usual way {usual * IDEAL:.0f} rows/s ({usual:.2f}), ours {best * IDEAL:.0f}")
    verdict("rating_client", best, TARGET, best >= TARGET, ours)


def main() -> None:
    """Measure what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-rows", type=int, default=100_000, help="0 leaves the memory out")
    parser.add_argument("--serve", type=float, metavar="LATENCY", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, metavar=("ROWS", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve))
    elif options.one:
        rate_ours(*options.one)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        with tempfile.TemporaryDirectory() as folder:
            if options.memory_rows:
                measure_memory(Path(folder), options.memory_rows)
            measure_speed(Path(folder), options.rows, options.repeats)


if __name__ == "__main__":
    main()
