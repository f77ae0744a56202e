"""Does distilled data help? The same model fine-tuned on each data arm, at equal tokens and at equal steps.

Every arm is trained by `trl sft` with one recipe; only the data differ, and the steps that the budget allows:

- `steps`: every arm makes as many steps (and reads as many rows) as one epoch over the raw rows has;
- `tokens`: every arm reads about as many tokens as one epoch over the raw rows has: the longer its rows, the fewer
  steps it makes.

Each arm is trained with several seeds and scored on rows that no arm saw. One line of the result::

    {"arm": "distilled + high", "budget": "tokens", "metric": "likelihood, equal tokens", "mean": -2.41, "low": -2.50,
     "high": -2.33, "difference": 0.32, "difference_low": 0.27, "difference_high": 0.38, "seeds": 3, "steps": 84,
     "tokens": 98304, "rows": 121}

The difference is to the full raw rows, paired by test row and seed. A comparison that was stopped goes on behind its
last scored model.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset

from hf_lmmixup.data_arms import ARMS, FULL, MOSAIC, SFTMIX, RunRows, arm_rows
from hf_lmmixup.downstream import Metric, as_messages, find_metric, tokenized
from hf_lmmixup.figures import slug
from hf_lmmixup.generation import opened
from hf_lmmixup.intervals import Interval, differences, intervals
from hf_lmmixup.preflight import DEFAULT_MAX_LENGTH
from hf_lmmixup.recipe import bundled_recipes, read_yaml
from hf_lmmixup.records import Progress
from hf_lmmixup.run_directory import read_json, write_json
from hf_lmmixup.training import beside, train


BUDGETS = ("tokens", "steps")
SEEDS = 3
COUNTS = ("tokens", "steps", "rows")
Trainer = Callable[[str, Path, Mapping[str, Any], Path], Any]
"""`(method, recipe, overrides, folder)`: leaves a model in the folder; see `training.train`."""


@dataclass(frozen=True)
class Trained:
    """One fine-tuning: how much it read, and what its model scored on each test row."""

    arm: str
    budget: str
    seed: int
    rows: int
    steps: int
    tokens: int
    scores: list[float | None]


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        model: Folder or Hub id of the model that every arm starts from.
        recipe: TRL recipe of the fine-tuning.
        folder: Where data, trainings and scores go.
        arms: Some of `data_arms.ARMS`.
        budgets: Some of `BUDGETS`.
        seeds: Trainings of each arm.
        epochs: How many epochs over the raw rows the budget is.
        metric: Name or dotted path, see `downstream`.
        keep_models: Whether models stay after they were scored.
    """

    model: str
    recipe: Path
    folder: Path
    arms: Sequence[str] = ARMS
    budgets: Sequence[str] = BUDGETS
    seeds: int = SEEDS
    epochs: float = 1.0
    metric: str = "likelihood"
    keep_models: bool = False

    def __post_init__(self) -> None:
        for name, given, allowed in (("arm", self.arms, ARMS), ("budget", self.budgets, BUDGETS)):
            if not given:
                raise ValueError(f"No {name} is named. Expected some of {list(allowed)}.")
            if unknown := [value for value in given if value not in allowed]:
                raise ValueError(f"Unknown {name} {unknown[0]!r}. Expected some of {list(allowed)}.")
        if self.seeds < 1 or self.epochs <= 0:
            raise ValueError(f"seeds={self.seeds} must be at least 1 and epochs={self.epochs} above 0.")


def compare(
    plan: Comparison,
    rows: RunRows,
    *,
    trainer: Trainer = train,
    progress: Progress = lambda title, done, total: None,
) -> list[dict[str, Any]]:
    """Train and score every arm, or those that are missing.

    Args:
        plan: What is compared.
        rows: What `data_arms.rows_of_run` returned.
        trainer: Who trains.
        progress: Told what is going on.

    Returns:
        One entry for each arm and budget, for `facts["arms"]`.

    Raises:
        ImportError: If the `train` extra is missing.
        FileNotFoundError: If there is no such model.
        RuntimeError: If a training fails.
        ValueError: If an arm has no row, or the metric is unknown.
    """
    from transformers import AutoTokenizer

    title, metric = find_metric(plan.metric)
    tokenizer: Any = opened(AutoTokenizer, plan.model)
    for arm in plan.arms:  # an arm without rows stops the comparison before anything is trained
        arm_rows(rows, arm, seed=0)
    places = [(arm, budget, seed) for budget in plan.budgets for arm in plan.arms for seed in range(plan.seeds)]
    trained = []
    for done, (arm, budget, seed) in enumerate(places):
        progress(f"{arm}, equal {budget}, seed {seed}", done, len(places))
        trained.append(_trained(plan, rows, tokenizer, metric, trainer, arm, budget, seed))
    progress("done", len(places), len(places))
    return [entry for budget in plan.budgets for entry in _entries(trained, title, budget)]


def _trained(
    plan: Comparison,
    rows: RunRows,
    tokenizer: Any,
    metric: Metric,
    trainer: Trainer,
    arm: str,
    budget: str,
    seed: int,
) -> Trained:
    """One fine-tuning and its scores, read back if they are there already."""
    config = read_yaml(plan.recipe)
    batch = int(config.get("per_device_train_batch_size", 8)) * int(config.get("gradient_accumulation_steps", 1))
    target = plan.epochs * len(rows.raw)
    window = config.get("max_length", DEFAULT_MAX_LENGTH)
    mean_raw = _mean_tokens(rows.raw, tokenizer, window)
    chosen = arm_rows(rows, arm, seed=seed, passes=1)
    if arm == MOSAIC:
        chosen = arm_rows(rows, arm, seed=seed, passes=int(np.ceil(target / len(chosen))))
    mean = _mean_tokens(chosen, tokenizer, window)
    wanted = target if budget == "steps" else target * mean_raw / mean
    steps = max(1, round(wanted / batch))
    folder = plan.folder / f"{slug(arm)}-{budget}-{seed}"
    mark = _mark(plan, chosen, rows.test, steps, seed)
    if (known := _scored(folder, mark)) is not None:
        return known
    shutil.rmtree(folder, ignore_errors=True)
    data = folder / "data"
    data.mkdir(parents=True)
    _as_trained(chosen, tokenizer, arm).to_parquet(data / "train.parquet")
    overrides = {"model_name_or_path": plan.model, "dataset_name": str(data), "max_steps": steps, "seed": seed}
    overrides |= {"num_train_epochs": None, "dataset_config": None}
    method = "sftmix" if arm == SFTMIX else "sft"
    (train_sftmix if arm == SFTMIX and trainer is train else trainer)(method, plan.recipe, overrides, folder / "model")
    scores = metric(str(folder / "model"), rows.test.to_list())
    result = Trained(arm, budget, seed, len(chosen), steps, round(steps * batch * mean), scores)
    write_json(folder / "scores.json", {"mark": mark, **asdict(result)})
    if not plan.keep_models:
        shutil.rmtree(folder / "model", ignore_errors=True)
    return result


def train_sftmix(method: str, recipe: Path, overrides: Mapping[str, Any], folder: Path) -> None:
    """Train with SFTMix by its own script, as `training.train` does with TRL's.

    Raises:
        RuntimeError: If the training fails.
    """
    config = read_yaml(recipe) | dict(overrides) | {"output_dir": str(folder), "save_strategy": "no"}
    config["dataset_name"] = str(Path(config["dataset_name"]) / "train.parquet")
    config |= {"reference_epochs": 1, "reference_checkpoints": 1}
    config = {key: value for key, value in config.items() if value is not None}
    file, log = (beside(folder, suffix) for suffix in (".yaml", ".log"))
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, str(bundled_recipes() / "sftmix.py"), "--config", str(file)]
    with log.open("wb") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    if code != 0:
        raise RuntimeError(f"`{' '.join(command)}` ended with exit code {code}. All of it: {log}")


def _as_trained(rows: Dataset, tokenizer: Any, arm: str) -> Dataset:
    """Rows as turns where the model has a chat template; SFTMix's script does that itself."""
    if tokenizer.chat_template is None or arm == SFTMIX:
        return rows
    turns = [as_messages(row) for row in rows.to_list()]
    return Dataset.from_dict({"prompt": [turn[0] for turn in turns], "completion": [turn[1] for turn in turns]})


def _mean_tokens(rows: Dataset, tokenizer: Any, window: int | None) -> float:
    """Tokens of a row that a training reads: what lies behind the window is cut off there, too."""
    pairs = rows.select_columns(["prompt", "completion"]).to_list()
    return float(np.mean([len(tokenized(tokenizer, row)[1][:window]) for row in pairs]))


def _mark(plan: Comparison, chosen: Dataset, test: Dataset, steps: int, seed: int) -> str:
    """What a score depends on, as 16 hex digits."""
    parts = [plan.model, plan.recipe.read_text(encoding="utf-8"), plan.metric, str(steps), str(seed)]
    for rows in (chosen, test):
        parts += [json.dumps([row["prompt"], row["completion"]]) for row in rows.to_list()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _scored(folder: Path, mark: str) -> Trained | None:
    file = folder / "scores.json"
    if not file.is_file():
        return None
    found = read_json(file)
    return Trained(**found) if found.pop("mark") == mark else None


def _entries(trained: Sequence[Trained], title: str, budget: str) -> list[dict[str, Any]]:
    """Means and intervals of all arms at one budget, in their order."""
    own = [one for one in trained if one.budget == budget]
    arms = list(dict.fromkeys(one.arm for one in own))
    scores = {
        arm: np.array([one.scores for one in own if one.arm == arm], np.float64) for arm in arms
    }  # None becomes nan
    means = intervals(scores)
    above = differences(scores, baseline=FULL) if FULL in scores else {}
    entries = []
    for arm in arms:
        members = [one for one in own if one.arm == arm]
        entry = {"arm": arm, "budget": budget, "metric": f"{title}, equal {budget}", **_bounds(means[arm])}
        if arm in above:
            entry |= _bounds(above[arm], "difference")
        entry |= {"seeds": len(members), **{k: round(np.mean([getattr(one, k) for one in members])) for k in COUNTS}}
        entries.append(entry)
    return entries


def _bounds(interval: Interval, name: str = "") -> dict[str, float]:
    if not name:
        return {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def markdown(entries: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as one Markdown table for each budget."""
    blocks = []
    for metric in dict.fromkeys(entry["metric"] for entry in entries):
        head = ["data", "mean", "95 % interval", "above full raw", "95 % interval", "seeds", "tokens", "steps", "rows"]
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        for entry in (entry for entry in entries if entry["metric"] == metric):
            above = "–" if "difference" not in entry else f"{entry['difference']:+.3f}"
            ends = "–"
            if "difference" in entry:
                ends = f"{entry['difference_low']:+.3f} to {entry['difference_high']:+.3f}"
            counts = [f"{entry[name]:,}" for name in ("seeds", *COUNTS)]
            between = f"{entry['low']:.3f} to {entry['high']:.3f}"
            lines.append([entry["arm"], f"{entry['mean']:.3f}", between, above, ends, *counts])
        blocks.append("\n".join([f"## {metric}", "", *(f"| {' | '.join(line)} |" for line in lines)]))
    return "\n\n".join(blocks) + "\n"
