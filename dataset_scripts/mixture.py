"""Build MIXTURE datasets: the bundled mini, checked, as a Hub repository, or one of your own from articles.

    python dataset_scripts/mixture.py check && python dataset_scripts/mixture.py vectors
    python dataset_scripts/mixture.py mini dataset_scripts/mixture
    python dataset_scripts/mixture.py build my_mixture --docstrings stdlib numpy pandas
    python dataset_scripts/mixture.py build my_mixture --articles articles.jsonl --chat-model gpt-4o-mini \
        --base-url https://api.openai.com/v1 --dry-run

`check` finds the weak texts of the mini that have to be drawn again and overwrites the list of them in the package,
`hf_lmmixup/data/mini_mixture/redrawn.json`. `vectors` encodes all texts that ship with the package
(`hf_lmmixup.shipped_vectors`). `mini` and `build` write a folder with Parquet files and a card:
`load_dataset("my_mixture", "sft")` reads it, and the Hub takes it as it is. Without a chat model targets are cut from
the text and spoilt by rule. With one, its answers are kept in `FOLDER.journal`; a run that was stopped goes on there.

Exit codes: 0 done, 1 cannot start, 2 usage, 3 the model stopped.
"""

import argparse
import json
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from docstrings import read_docstrings

from hf_lmmixup import bundled
from hf_lmmixup.articles import Article, Segment, read_articles, segment
from hf_lmmixup.chat_model import ModelStopped
from hf_lmmixup.chat_writer import ChatWriter, estimate, journal_settings
from hf_lmmixup.construction import Construction, construct
from hf_lmmixup.construction_plan import Plan, Writer, make_drafts
from hf_lmmixup.corruption import names
from hf_lmmixup.datastore import build
from hf_lmmixup.encoder import CachedEncoder, Encoder, load_encoder
from hf_lmmixup.journal import Journal
from hf_lmmixup.mixture_repository import Configuration, Origin, check_folder, license_of, write_repository
from hf_lmmixup.offline_writer import OfflineWriter
from hf_lmmixup.records import TaskType, row_id
from hf_lmmixup.shipped_vectors import shipped_texts, write_vectors


MINI_TEXT = """
The hand-written sample of [MIXTURE](https://arxiv.org/abs/2510.20449) that ships with `hf_lmmixup`: clusters of weak
texts, each with one excellent text that merges them and the reasoning in between. All texts were written for this
project: 45 topics of general knowledge for each of five task types, a fifth of the topics held out as `test`. Two or
three weak texts of a cluster are written by hand, the others are seeded corruptions of the target: truncation, typos,
vague wording, missing reasoning, cross-topic merging. Each weak text is rated below its target by the quality judge
that ships with the package, a linear one that learns from the `train` texts alone; {redrawn} draws of a corruption
that were not were rejected.

All configurations show the same clusters. The sample is small: it teaches a model the form of a distillation, no more.

```python
from datasets import load_dataset

load_dataset("dataset_scripts/mixture")           # prompts and completions for SFT
load_dataset("dataset_scripts/mixture", "grpo")   # prompts and references for rewards
```
"""


MARGIN = 0.1
"""Points of score by which the judge must see a corruption below its target; low precision moves it by 0.02."""


def main(arguments: list[str] | None = None) -> int:
    """Run one of the four commands; returns the exit code."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    disable_progress_bars()
    try:
        return options.run(options)
    except ModelStopped as stopped:
        print(
            f"The model stopped: {stopped}\nWhat it answered is kept; the same command goes on from there.",
            file=sys.stderr,
        )
        return 3
    except (ValueError, OSError, ImportError) as error:
        print(f"{error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The four commands and their options."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(required=True)
    mini = commands.add_parser("mini", help="write the bundled mini as a dataset repository")
    mini.add_argument("folder", type=Path)
    mini.set_defaults(run=write_mini)
    check = commands.add_parser("check", help="write to redrawn.json which corruptions of the mini are drawn again")
    check.set_defaults(run=check_mini)
    vectors = commands.add_parser("vectors", help="encode the texts that ship with the package")
    vectors.set_defaults(run=encode_shipped)
    build = commands.add_parser("build", help="make a dataset from articles")
    build.add_argument("folder", type=Path)
    source = build.add_mutually_exclusive_group(required=True)
    source.add_argument("--articles", type=Path, help="JSONL: title, text (or sections), source, license")
    source.add_argument(
        "--docstrings", nargs="+", metavar="PACKAGE", help="installed packages; stdlib for Python's own"
    )
    build.add_argument("--limit", type=_count, help="use the first so many segments only")
    build.add_argument("--chat-model", help="model that writes, rates and spoils; without it all is done by rule")
    build.add_argument("--base-url", help="OpenAI-compatible address of that model, up to and with /v1")
    build.add_argument("--concurrency", type=int, default=16, help="requests in flight (default: 16)")
    build.add_argument("--encoder", help="sentence-transformers model that finds close targets (default: MiniLM)")
    build.add_argument("--no-fusion", action="store_true", help="mix no topics, and so need no encoder")
    build.add_argument("--test-share", type=float, default=Plan.test_share, help="share of the articles held out")
    build.add_argument("--sft-share", type=float, default=Plan.sft_share, help="share of the clusters for SFT")
    build.add_argument("--seed", type=int, default=0)
    build.add_argument("--dry-run", action="store_true", help="print the plan and the cost, and do nothing")
    build.add_argument("--input-price", type=float, default=0.0, help="money for a million tokens sent")
    build.add_argument("--output-price", type=float, default=0.0, help="money for a million tokens received")
    build.set_defaults(run=build_own)
    return whole


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def check_mini(options: argparse.Namespace) -> int:
    """Draw the mini's corruptions again until the judge rates each below its target; keep the list of those."""
    encoder = CachedEncoder(load_encoder(precision="float32"))
    rejected: set[str] = set()
    while found := not_weaker(bundled.complete_clusters(rejected), encoder):
        rejected |= found
        print(f"{len(found)} corruptions are not rated below their targets; drawing again")
    file = Path(bundled.__file__).parent / bundled.FOLDER / bundled.REDRAWN
    file.write_text(json.dumps(sorted(rejected), indent=0) + "\n")
    print(f"{len(rejected)} ids in {file}")
    return 0


def encode_shipped(options: argparse.Namespace) -> int:
    """Write the MiniLM's vectors of all texts that ship with the package."""
    texts = shipped_texts()
    file = write_vectors(load_encoder(precision="float32").encode(texts))
    print(f"{len(texts)} vectors in {file}")
    return 0


def not_weaker(clusters: list[dict[str, Any]], encoder: Encoder) -> set[str]:
    """The corruptions that a judge learnt from the train split does not rate below their targets, as `redrawn` does.

    Args:
        clusters: What `bundled.complete_clusters` made.
        encoder: The judge's.
    """
    rows = bundled.rated_texts("train", clusters)
    judge = build([r.text for r in rows], [r.score for r in rows], [r.task_type for r in rows], encoder)
    found = set()
    for cluster in clusters:
        weak = [variant["text"] for variant in cluster["weak"] if variant["flaw"] in names()]
        texts = [cluster["target"], *weak]
        target, *values = judge.judge_embedded(texts, encoder.encode(texts), cluster["task_type"])
        found |= {row_id(cluster["id"], t) for t, v in zip(weak, values, strict=True) if v > target - MARGIN}
    return found


def write_mini(options: argparse.Namespace) -> int:
    """The bundled mini as a repository."""
    clusters = {split: [] for split in ("train", "test")}
    for cluster in bundled.mixture_clusters():
        clusters[cluster["split"]].append(cluster)
    configurations = [Configuration(form, form, clusters) for form in ("sft", "grpo", "raw")]
    for kind in TaskType:
        part = {split: [row for row in rows if row["task_type"] == kind] for split, rows in clusters.items()}
        configurations.append(Configuration(kind.value, "sft", part))
    topics = {cluster["topic"] for rows in clusters.values() for cluster in rows}
    origin = Origin("written for hf_lmmixup", "apache-2.0", len(topics))
    text = MINI_TEXT.format(redrawn=len(bundled.redrawn()))
    files = write_repository(options.folder, configurations, title="MIXTURE mini", description=text, origins=[origin])
    print(f"{len(files)} files in {options.folder}: {sum(map(len, clusters.values()))} clusters.")
    return 0


def build_own(options: argparse.Namespace) -> int:
    """A dataset from articles."""
    start, folder = time.perf_counter(), options.folder.resolve()
    check_folder(folder)
    plan = Plan(seed=options.seed, test_share=options.test_share, sft_share=options.sft_share)
    cut = segment(_articles(options))
    segments = cut.segments[: options.limit]
    print(f"{len(segments)} segments of {len({part.article for part in segments})} articles; left out: {cut.dropped}")
    if not segments:
        raise ValueError("No segment to work on. Articles need paragraphs of prose of 25 words and more.")
    license_of(_origins(segments))  # what cannot be combined is refused before any work
    if options.dry_run:
        print_plan(segments, plan, options)
        return 0
    encoder = None if options.no_fusion else load_encoder(options.encoder)
    made, writer_name = _write(segments, plan, options, encoder)
    print(
        f"{made.count()} clusters; dropped: {dict(made.dropped)}; {made.fused} fused, {made.noisy} variants with typos"
    )
    description = describe(made, plan, writer_name, None if encoder is None else encoder.name)
    configurations = [
        Configuration("sft", "sft", made.clusters["sft"]),
        Configuration("grpo", "grpo", made.clusters["grpo"]),
        Configuration(
            "raw", "raw", {s: made.clusters["sft"][s] + made.clusters["grpo"][s] for s in ("train", "test")}
        ),
    ]
    files = write_repository(
        folder, configurations, title=folder.name, description=description, origins=_origins(segments)
    )
    print(f"{len(files)} files in {options.folder}, {time.perf_counter() - start:.0f} s")
    return 0


def print_plan(segments: list[Segment], plan: Plan, options: argparse.Namespace) -> None:
    """What a run would make and cost."""
    drafts = make_drafts(segments, plan)
    kinds = Counter(draft.task_type.value for draft in drafts)
    splits = Counter(plan.split_of(draft.segment.article) for draft in drafts)
    print(
        f"drafts by task type: {dict(kinds)}; by split: {dict(splits)}; weak variants: about "
        f"{sum(plan.size_of(draft.id) for draft in drafts)}"
    )
    if not options.chat_model:
        print("no chat model: written by rule, no requests, no cost")
        return
    print("step        requests   tokens sent   received         cost")
    total = 0.0
    for cost in estimate(drafts, plan):
        money = (cost.input_tokens * options.input_price + cost.output_tokens * options.output_price) / 1e6
        total += money
        print(f"{cost.step:<10} {cost.requests:>9} {cost.input_tokens:>13} {cost.output_tokens:>10} {money:>12.2f}")
    print(
        f"total {total:.2f}, if every target is kept; prices by --input-price and --output-price, per million tokens"
    )


def describe(made: Construction, plan: Plan, writer: str, encoder: str | None) -> str:
    """The card's text: how the dataset was made and what was lost."""
    lost = "\n".join(f"| {reason} | {count} |" for reason, count in sorted(made.dropped.items())) or "| nothing | 0 |"
    mixed = f"{made.fused} clusters have a variant mixed with a close target of another article (by `{encoder}`)"
    fusion = mixed if encoder else "No topics are mixed"
    return f"""
Clusters of weak texts, each with one excellent text that merges them, in the manner of
[MIXTURE](https://arxiv.org/abs/2510.20449). Targets, variants and reasoning: {writer}. {fusion};
{made.noisy} variants have typos on top. A fixed {plan.test_share:.0%} of all articles is held out as
`test`; {plan.sft_share:.0%} of the clusters are for SFT, the others for GRPO; `raw` shows both. Seed {plan.seed}.

Checked: each target has the form of its task type, its facts stand in its variants together, no variant holds it, and
no test target nearly repeats a train target.

| left out because | drafts |
|---|---|
{lost}
"""


def _articles(options: argparse.Namespace) -> list[Article]:
    return list(read_articles(options.articles) if options.articles else read_docstrings(options.docstrings))


def _write(
    segments: list[Segment], plan: Plan, options: argparse.Namespace, encoder: object
) -> tuple[Construction, str]:
    def run(writer: Writer) -> tuple[Construction, str]:
        return construct(segments, writer, plan, encoder=encoder, progress=print), writer.name

    if not options.chat_model:
        return run(OfflineWriter())
    if not options.base_url:
        raise ValueError(
            "--chat-model needs --base-url: there is no default address, data goes only where you send it."
        )
    from hf_lmmixup.endpoint import EndpointModel

    model = EndpointModel(options.chat_model, options.base_url, concurrency=options.concurrency, max_tokens=4096)
    drafts = make_drafts(segments, plan)
    folder = options.folder.resolve()
    with Journal(folder.with_name(f"{folder.name}.journal"), journal_settings(model, drafts, plan)) as journal:
        return run(ChatWriter(model, journal, plan))


def _origins(segments: list[Segment]) -> list[Origin]:
    known = {(part.article, part.source, part.license) for part in segments}
    articles = Counter((source, license_name) for _, source, license_name in known)
    return [Origin(source, license_name, count) for (source, license_name), count in sorted(articles.items())]


if __name__ == "__main__":
    sys.exit(main())
