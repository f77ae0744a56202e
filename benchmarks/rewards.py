"""The rewards of one GRPO step against a straightforward implementation of the same rewards.

    python benchmarks/rewards.py [--repeats 3] [--threads 2]

512 completions: 128 prompts of the bundled mini MIXTURE with 4 completions each, references and inputs attached; a
fifth of the completions repeats another one of its prompt. Quality, alignment and format are computed together.

The baseline does what the published code does, in the plainest way: every completion is encoded for quality, encoded
again for alignment, and so is its reference, in order of arrival, in batches of 16, in float32, by
`sentence_transformers`; neighbors come from scikit-learn's brute force. Ours is `hf_lmmixup.rewards`, cold: nothing
is remembered from an earlier step. *Exact* computes in float32 like the baseline and must give its values to 1e-5;
it asks the kNN posterior, since the baseline knows no other judge. *Fast* is the default in everything: bfloat16 where
the processor has it, the datastore's better judge.

Printed: both ratios by the clock and by processor seconds (a shared machine disturbs the first more), the largest
difference of values, how close the fast vectors are, how many completions earn the same, and the share of our time
that is not the encoder's forward passes.
"""

import argparse
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


PROMPTS, GENERATIONS, REPEATED = 128, 4, 0.2
EXACT_TARGET, FAST_TARGET = 3.0, 6.0
TOLERANCE, COSINE_TARGET, SAME_TARGET, OUTSIDE_TARGET = 1e-5, 0.9999, 0.995, 0.05
BASELINE_BATCH = 16
WEIGHTS = {"quality": 0.5, "alignment": 0.4, "format": 0.1}

FORMS = {
    "qa": r"Q:.*A:",
    "mcq": r"Q:.*A\).*B\).*C\).*D\).*Answer:",
    "tfq": r"Answer:",
    "cs": r"C:.*S:",
    "para": r"",
}


def make_step(seed: int = 0) -> dict[str, list[Any]]:
    """The columns that TRL hands to the rewards: completions of mixed quality, some malformed, some repeated."""
    from hf_lmmixup.bundled import mixture_clusters
    from hf_lmmixup.prompts import format_completion

    generator = random.Random(seed)
    clusters = mixture_clusters("train")[:PROMPTS]
    columns: dict[str, list[Any]] = {"completions": [], "task_type": [], "reference": [], "sources": []}
    for place, cluster in enumerate(clusters):
        answers = [cluster["target"], *(weak["text"] for weak in cluster["weak"])]
        other = clusters[(place + 5) % PROMPTS]["target"]  # of the same task type
        drafts: list[str] = []
        for number in range(GENERATIONS):
            if drafts and generator.random() < REPEATED * GENERATIONS / (GENERATIONS - 1):
                drafts.append(generator.choice(drafts))
                continue
            text = other if generator.random() < 0.1 else generator.choice(answers)
            words = text.split(" ")
            # A model writes no two answers alike: a few words are swapped, and some answers end early or go on.
            for _ in range(2):
                spot = generator.randrange(len(words) - 1)
                words[spot : spot + 2] = words[spot : spot + 2][::-1]
            text = " ".join(words[: max(12, int(len(words) * generator.choice((0.6, 0.8, 1, 1))))])
            thought = f"{cluster['reasoning']} Attempt {number}."
            drafts.append(text if generator.random() < 0.05 else format_completion(thought, text))
        columns["completions"] += drafts
        columns["task_type"] += [cluster["task_type"]] * GENERATIONS
        columns["reference"] += [cluster["target"]] * GENERATIONS
        columns["sources"] += [cluster["sources"]] * GENERATIONS
    return columns


class Plain:
    """The published rewards in the plainest way: no text is recognized, nothing is sorted, nothing is shared."""

    def __init__(self, model: Any, datastore: Any) -> None:
        from sklearn.neighbors import NearestNeighbors

        self.model, self.transitions, self.libraries = model, datastore.transitions, {}
        for kind in datastore.transitions:
            rows = datastore.design.kinds == kind
            index = NearestNeighbors(n_neighbors=16, metric="cosine", algorithm="brute").fit(
                datastore.embeddings[rows]
            )
            self.libraries[kind] = (index, datastore.scores[rows])

    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, batch by batch in order of arrival."""
        batches = [texts[start : start + BASELINE_BATCH] for start in range(0, len(texts), BASELINE_BATCH)]
        options = {"batch_size": BASELINE_BATCH, "normalize_embeddings": True, "show_progress_bar": False}
        return np.concatenate([self.model.encode(batch, **options) for batch in batches])

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, np.ndarray]:
        """Expected scores, cosines and format of all completions."""
        answers = []
        for completion in columns["completions"]:
            found = re.search(r"<answer>(.*?)</answer>", completion, re.S)
            answers.append(found[1].strip() if found else completion)
        expected = []
        for vector, kind in zip(self.encode(answers), columns["task_type"], strict=True):
            index, scores = self.libraries[kind]
            near = scores[index.kneighbors(vector[None], return_distance=False)[0]]
            matrix, prior = self.transitions[kind].matrix, self.transitions[kind].prior
            logits = np.log(prior + 1e-12) + sum(np.log(matrix[:, score] + 1e-12) for score in near)
            chances = np.exp(logits - logits.max())
            expected.append(float(chances @ np.arange(6) / chances.sum()))
        cosines = (self.encode(answers) * self.encode(columns["reference"])).sum(1)
        forms = []
        for completion, answer, kind in zip(columns["completions"], answers, columns["task_type"], strict=True):
            whole = re.fullmatch(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", completion, re.S)
            forms.append(0.5 * bool(whole) + 0.5 * bool(whole and re.search(FORMS[kind], answer, re.S)))
        return {"expected_score": np.array(expected), "cosine": cosines, "format": np.array(forms)}


class Ours:
    """The package's rewards as TRL calls them, forgetting everything before each step."""

    def __init__(self, precision: str, judge: str) -> None:
        self.precision, self.judge = precision, judge
        self.set_environment()
        from hf_lmmixup.reward_settings import loaded_datastore, loaded_encoder

        self.encoder, self.datastore = loaded_encoder(), loaded_datastore()
        self.model = self.encoder.encoder._model
        self.forward, self.forward_seconds = self.model.forward, 0.0
        self.model.forward = self.timed_forward

    def set_environment(self) -> None:
        """Configure the rewards, which read it at every call."""
        os.environ["HF_LMMIXUP_DATASTORE"] = "bundled"
        os.environ["HF_LMMIXUP_QUALITY_JUDGE"] = self.judge
        os.environ["HF_LMMIXUP_ENCODER_PRECISION"] = self.precision

    def timed_forward(self, *arguments: Any, **options: Any) -> Any:
        """The encoder's forward pass, its seconds added up."""
        started = time.perf_counter()
        try:
            return self.forward(*arguments, **options)
        finally:
            self.forward_seconds += time.perf_counter() - started

    def __call__(self, columns: dict[str, list[Any]], *, cold: bool = True) -> dict[str, np.ndarray]:
        """Rewards and their components of all completions."""
        from hf_lmmixup import guards, readings, rewards

        self.set_environment()
        if cold:
            self.encoder._rows.clear()
        readings._read.cache_clear()
        guards._known_words.cache_clear()
        self.forward_seconds = 0.0
        found: dict[str, Any] = {}
        logs = {"log_extra": found.__setitem__, "log_metric": lambda name, value: None}
        for name in ("quality", "alignment", "format"):
            found[name] = getattr(rewards, f"{name}_reward")(**columns, **logs)
        return {
            name: np.array([np.nan if value is None else value for value in found[name]], float) for name in VALUES
        }


VALUES = ("expected_score", "cosine", "quality", "alignment", "format")


def timed(way: Callable[..., Any], columns: dict[str, list[Any]]) -> tuple[float, float, Any]:
    """Seconds by the clock, processor seconds, and what came out."""
    clock, processor = time.perf_counter(), time.process_time()
    found = way(columns)
    return time.perf_counter() - clock, time.process_time() - processor, found


def compare(plain: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> float:
    """The largest difference between the baseline's values and ours, over completions that no guard stops."""
    judged = ~np.isnan(exact["expected_score"]) & ~np.isnan(exact["cosine"])
    differences = [np.abs(plain[name] - exact[name])[judged].max() for name in ("expected_score", "cosine")]
    print(f"values: {judged.sum()} of {len(judged)} completions judged on both sides (others malformed or guarded);")
    print(f"        largest difference of expected scores and cosines {max(differences):.1e} (target {TOLERANCE:.0e})")
    stricter = int((plain["format"] != exact["format"]).sum())
    print(f"        format differs on {stricter} completions, where the published patterns pass what has not the form")
    return max(differences)


def agreement(exact: Ours, fast: Ours, columns: dict[str, list[Any]]) -> bool:
    """How close the fast mode comes: cosines of vectors, and completions with the same weighted sum."""
    exact.judge = fast.judge
    found = [way(columns, cold=False) for way in (exact, fast)]
    texts = [text for text in exact.encoder._rows if text in fast.encoder._rows]
    cosines = (exact.encoder.encode(texts) * fast.encoder.encode(texts)).sum(1)
    sums = [sum(weight * np.nan_to_num(values[name]) for name, weight in WEIGHTS.items()) for values in found]
    same = float(np.isclose(*sums, atol=1e-9).mean())
    print(f"fast:   cosine to float32 at least {cosines.min():.6f} over {len(texts)} texts (target {COSINE_TARGET}),")
    print(f"        the same reward on {same:.2%} of completions (target {SAME_TARGET:.1%})")
    return bool(cosines.min() >= COSINE_TARGET and same >= SAME_TARGET)


def main() -> None:
    """Measure in turn, compare, and end with the line of the fast mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    columns = make_step()
    distinct = len(set(zip(columns["completions"], columns["reference"], strict=True)))
    characters = statistics.mean(map(len, columns["completions"]))
    print(f"{len(columns['completions'])} completions, {distinct} distinct, {characters:.0f} characters on average")

    exact, fast = Ours("float32", "neighbors"), Ours("auto", "default")
    ways = {"plain": Plain(exact.model, exact.datastore), "exact": exact, "fast": fast}
    clock: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    outside: list[float] = []
    found: dict[str, dict[str, np.ndarray]] = {}
    warm_up = {name: values[:32] for name, values in columns.items()}
    for way in ways.values():
        way(warm_up)
    for _ in range(options.repeats):
        for name, way in ways.items():
            seconds, busy, found[name] = timed(way, columns)
            clock[name].append(seconds)
            processor[name].append(busy)
            if way is fast:
                outside.append(1 - fast.forward_seconds / seconds)
    fine = compare(found["plain"], found["exact"]) <= TOLERANCE
    close = agreement(exact, fast, columns)
    share = statistics.median(outside)
    print(f"        {share:.1%} of the time outside the encoder's forward passes (target {OUTSIDE_TARGET:.0%})")
    for name in ways:
        rate = len(columns["completions"]) / statistics.median(clock[name])
        print(f"{name}: {rate:.0f} completions/s, {statistics.median(processor[name]):.2f} processor seconds a step")
    for name, target, good in (("exact", EXACT_TARGET, fine), ("fast", FAST_TARGET, close and share < OUTSIDE_TARGET)):
        ratios = [base / own for base, own in zip(clock["plain"], clock[name], strict=True)]
        busy = statistics.median(processor["plain"]) / statistics.median(processor[name])
        ratio = statistics.median(ratios)
        state = "ok" if ratio >= target and good else "short"
        print(f"{name} by processor seconds: {busy:.2f}")
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"rewards_{name}: ratio={ratio:.2f} target={target} {state} (median of {len(ratios)}, spread {spread})")


if __name__ == "__main__":
    sys.exit(main())
