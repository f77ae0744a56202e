"""The whole proof as jobs that leave files, so that two processes share them and a killed run goes on.

    distiller, beside it the schooled student  ->  each seed: pool, distillation  ->  each seed and arm: one student

A finished job is a JSON file in the output folder; it is not done again.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from benchmarks.proof import arms, distiller, refining, student, teaching
from benchmarks.proof.models import train_tokenizer
from benchmarks.proof.noise import weak_rows
from benchmarks.proof.tiers import Tier
from benchmarks.proof.world import Split, invented, split
from hf_lmmixup.datastore import ScoredDatastore
from hf_lmmixup.encoder import CachedEncoder, load_encoder
from hf_lmmixup.prompts import distillation_messages, format_completion


WORLD_SEED = 0

Log = Callable[[str], None]


def world(tier: Tier) -> Split:
    """The characters of all seeds; checked to be disjoint from those of teaching."""
    return split(tier.seeds, tier.characters, WORLD_SEED)


def write(path: Path, value: Any) -> Any:
    """Write JSON so that the file is there only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return value


def prepare_texts(tier: Tier, folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Documents and clusters of the distiller; the tokenizer that is trained on them is saved."""
    parted = world(tier)
    characters = parted.teaching + invented(parted, tier.invented, seed=4)
    Split(characters, parted.downstream).check()
    texts = distiller.documents(characters, tier.documents, seed=1)
    clusters = teaching.teaching_clusters(characters, tier.clusters, seed=2)
    shown = clusters[:500]
    prompts = [distillation_messages(cluster["sources"])[-1]["content"] for cluster in shown]
    completions = [format_completion(teaching.REASONING, cluster["target"]) for cluster in shown]
    if not (folder / "tokenizer").exists():
        train_tokenizer([*texts, *prompts, *completions], folder / "tokenizer")
    return texts, clusters


def teach_distiller(tier: Tier, folder: Path) -> str:
    """Datastore and the models of the distiller before and after each training."""
    done = folder / "distiller.json"
    if done.is_file():
        return "distiller: there already"
    one_thread()
    tokenizer = load_tokenizer(folder)
    texts, clusters = prepare_texts(tier, folder)
    rated = weak_rows(world(tier).teaching[: tier.rated], seed=3)
    datastore = refining.build_datastore(rated, CachedEncoder(load_encoder()), folder / "datastore")
    seconds, start = {}, time.perf_counter()

    def lap(title: str) -> None:
        nonlocal start
        seconds[title], start = round(time.perf_counter() - start, 1), time.perf_counter()

    models = {"untrained": folder / "untrained"}
    distiller.untrained(models["untrained"], tokenizer, width=tier.width, layers=tier.layers, seed=0)
    models["read"] = distiller.read(
        models["untrained"], folder / "read", tokenizer, texts, steps=tier.reading_steps, seed=0
    )
    lap("reading")
    models["sft"] = distiller.cold_start(models["read"], folder / "sft", clusters, steps=tier.sft_steps, seed=0)
    lap("trl sft")
    if tier.grpo_steps:
        models["grpo"] = distiller.reinforce(
            models["sft"], folder / "grpo", clusters[-2000:], datastore, steps=tier.grpo_steps, seed=0
        )
        lap("trl grpo")
    report = ScoredDatastore.load(datastore).report
    write(done, {"models": {k: v.name for k, v in models.items()}, "seconds": seconds, "rater": report})
    return f"distiller: {seconds}"


def school(tier: Tier, folder: Path) -> str:
    """The student that all arms of all seeds begin with, before it is taught; needs no distiller."""
    done = folder / "student.json"
    if done.is_file():
        return "student: schooled already"
    one_thread()
    start = time.perf_counter()
    shown = teaching.schooling(world(tier).teaching[: tier.schooling], seed=200)
    student.pretrain(folder / "student", load_tokenizer(folder), shown, tier, seed=0)
    write(done, {"seconds": round(time.perf_counter() - start, 1)})
    return f"student: schooled ({time.perf_counter() - start:.0f} s)"


def raw_pool(tier: Tier, seed: int) -> list[dict[str, Any]]:
    """The weak rows of one seed."""
    return weak_rows(world(tier).downstream[seed], seed=100 + seed)


def write_rows(place: Path, rows: dict[str, Dataset]) -> None:
    """Write the rows of some arms, each to a file."""
    place.mkdir(parents=True, exist_ok=True)
    for arm, data in rows.items():
        texts = data.select_columns(["prompt", "completion"]) if len(data) else data
        write(place / f"rows_{arm}.json", texts.to_list())


def prepare(tier: Tier, folder: Path, seed: int) -> str:
    """The world of one seed: pool, clusters, distilled rows, the rows of the arms that need them."""
    place = folder / f"seed_{seed}"
    if (place / "facts.json").is_file():
        return f"seed {seed}: there already"
    one_thread()
    truth = world(tier).downstream[seed]
    models = json.loads((folder / "distiller.json").read_text(encoding="utf-8"))["models"]
    encoder, datastore = CachedEncoder(load_encoder()), ScoredDatastore.load(folder / "datastore")
    pool = refining.rate_and_cluster(raw_pool(tier, seed), encoder, datastore, seed)
    facts: dict[str, Any] = {"pool": pool.facts}
    selected = {}
    last = list(models)[-1]
    dealt = refining.shuffled(pool.clustered, seed)
    jobs = [(arms.DISTILLED, pool.clustered, last), (arms.SHUFFLED, dealt, last)]
    jobs += [(arms.UNTRAINED, pool.clustered, "untrained")]
    jobs += [("sft alone", pool.clustered, "sft")] if last != "sft" else []
    for name, clustered, model in jobs:
        start = time.perf_counter()
        refined = refining.refine(clustered, folder / models[model], encoder, datastore, truth, seed)
        facts[name] = refined.facts | {"seconds": round(time.perf_counter() - start, 1)}
        selected[name] = refined.selected
    selected.pop("sft alone", None)
    write_rows(place, arms.arm_rows(pool, selected, seed))
    write(place / "facts.json", facts)
    return f"seed {seed}: {facts}"


def run_arm(tier: Tier, folder: Path, seed: int, arm: str) -> str:
    """One student."""
    place = folder / f"seed_{seed}"
    done = place / f"arm_{arm}.json"
    if done.is_file():
        return f"seed {seed}, {arm}: there already"
    one_thread()
    start, tokenizer = time.perf_counter(), load_tokenizer(folder)
    source = {arms.MOSAIC: arms.HIGH, arms.SFTMIX: arms.HIGH, arms.LONG_RAW: arms.RAW}.get(arm, arm)
    rows = Dataset.from_list(json.loads((place / f"rows_{source}.json").read_text(encoding="utf-8")))
    truth = world(tier).downstream[seed]
    tokens = tier.student_tokens * (tier.long_raw if arm == arms.LONG_RAW else 1)
    curve = arms.teach(arm, rows, folder / "student", tokenizer, truth, tier, seed, tokens)
    result = {
        "right": np.asarray(curve.right).mean(axis=(1, 2)).round(6).tolist(),
        "recall": float(np.mean(curve.recall)),
        "tokens": curve.tokens,
        "accuracy": curve.accuracy,
        "steps": curve.steps,
        "rows": len(rows),
        "row_tokens": sum(len(row["ids"]) for row in student.encoded(rows, tokenizer)),
        "seconds": round(time.perf_counter() - start, 1),
    }
    write(done, result)
    return f"seed {seed}, {arm}: {curve.accuracy[-1]:.3f} after {curve.tokens[-1]} tokens ({result['seconds']} s)"


def run_all(tier: Tier, folder: Path, workers: int, log: Log) -> dict[str, list[dict[str, Any]]]:
    """Every job; the results of each arm, one a seed. While the distiller trains, arms without one have their turn."""
    folder.mkdir(parents=True, exist_ok=True)
    prepare_texts(tier, folder)
    log("texts and tokenizer")
    seeds = range(tier.seeds)
    for seed in seeds:
        write_rows(folder / f"seed_{seed}", arms.known_rows(raw_pool(tier, seed), world(tier).downstream[seed], seed))
    names: Sequence[str] = [*arms.ARMS, arms.LONG_RAW] if tier.long_raw else arms.ARMS
    early = [arm for arm in arms.NEED_NO_DISTILLER if arm in names]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        distiller_is_taught = pool.submit(teach_distiller, tier, folder)
        log(pool.submit(school, tier, folder).result())
        jobs = [pool.submit(run_arm, tier, folder, seed, arm) for seed in seeds for arm in early]
        log(distiller_is_taught.result())
        for job in [pool.submit(prepare, tier, folder, seed) for seed in seeds]:
            log(job.result())
        late = [arm for arm in names if arm not in early]
        jobs += [pool.submit(run_arm, tier, folder, seed, arm) for seed in seeds for arm in late]
        for job in jobs:
            log(job.result())
    return {arm: [read_result(folder, seed, arm) for seed in seeds] for arm in names}


def read_result(folder: Path, seed: int, arm: str) -> dict[str, Any]:
    """The result of one student."""
    return json.loads((folder / f"seed_{seed}" / f"arm_{arm}.json").read_text(encoding="utf-8"))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that distiller and students share."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")


def one_thread() -> None:
    """Two processes with two threads each on two cores are slower than with one each; no progress bars either."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
