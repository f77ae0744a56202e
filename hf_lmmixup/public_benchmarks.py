"""The benchmarks of LM-Mixup through `lm-eval`, for a model or an adapter, in the form that cards show.

    run_benchmarks("runs/pile/distiller", ["mmlu", "gsm8k"])
    ->  [{"name": "MMLU", "dataset_id": "cais/mmlu", "task_id": "mmlu", "metric": "accuracy", "value": 24.6,
          "stderr": 0.4, "notes": "lm-eval 0.4.13, mmlu, 0-shot"}, ...]

Tasks and prompts are those of `lm-eval` (https://github.com/EleutherAI/lm-evaluation-harness); the shots are the
paper's (arXiv 2510.20449). Two differ from its evaluation: TruthfulQA is the multiple-choice score here, while the
paper lets two judge models decide, and nothing is sampled. `questions` is our own task for any file of questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hf_lmmixup.artifacts import KEPT_EVALUATIONS
from hf_lmmixup.generation import opened
from hf_lmmixup.model_folder import ADAPTER_CONFIG, BASE_KEY, is_adapter
from hf_lmmixup.run_directory import read_json, write_json


EVAL_EXTRA = 'Benchmarks need lm-eval: pip install "hf-lmmixup[eval,train]".'

QUESTIONS = "questions"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        title: What cards call it.
        task: Task, group or tag of lm-eval.
        metric: Its metric there, without the filter.
        filter: Its filter there.
        shots: Examples in the prompt; `None` leaves it to the task.
        dataset_id: Its dataset on the Hub; `None` for files of one's own.
        measure: What cards call the metric.
        task_id: What the Hub calls the task, in the `eval.yaml` of that dataset; by default as lm-eval does.
    """

    title: str
    task: str
    metric: str
    filter: str
    shots: int | None
    dataset_id: str | None
    measure: str
    task_id: str | None = None


BENCHMARKS = {
    "mmlu": Benchmark("MMLU", "mmlu", "acc", "none", 0, "cais/mmlu", "accuracy"),
    "truthfulqa": Benchmark("TruthfulQA", "truthfulqa_mc2", "acc", "none", None, "truthfulqa/truthful_qa", "MC2"),
    "gsm8k": Benchmark(
        "GSM8K", "gsm8k_cot", "exact_match", "flexible-extract", 8, "openai/gsm8k", "exact match", task_id="gsm8k"
    ),
    "bbh": Benchmark("BBH", "bbh_cot_fewshot", "exact_match", "get-answer", 3, "SaylorTwift/bbh", "exact match"),
    "tydiqa": Benchmark("TyDiQA", "tydiqa_goldp", "f1", "none", 1, "google-research-datasets/tydiqa", "F1"),
    QUESTIONS: Benchmark("Questions", "lmmixup_questions", "exact_match", "none", None, None, "exact match"),
}
PAPER = ("mmlu", "truthfulqa", "gsm8k", "bbh", "tydiqa")
"""The five of arXiv 2510.20449."""


def tasks_path() -> Path:
    """The folder of our own tasks, for `lm_eval run --include_path`."""
    return Path(__file__).with_name("lm_eval_tasks")


def run_benchmarks(
    model: str | Path,
    names: Sequence[str] = PAPER,
    *,
    data: str | None = None,
    limit: int | None = None,
    batch_size: int | str = "auto",
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Run benchmarks on one model.

    Args:
        model: Folder or Hub id of a model, or of a LoRA adapter.
        names: Keys of `BENCHMARKS`.
        data: File of `questions`; by default the few that come with the package.
        limit: Rows of each task; the results say so.
        batch_size: A number, or `auto`.
        device: Torch device; `None` leaves it to lm-eval.

    Returns:
        One entry for each benchmark, `value` in percent, for `facts["evaluations"]`.

    Raises:
        ImportError: If the `eval` extra is missing.
        FileNotFoundError: If there is no such model.
        ValueError: If no benchmark is named, or one is unknown.
    """
    if not names:
        raise ValueError(f"No benchmark is named. Expected some of {list(BENCHMARKS)}.")
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise ValueError(f"Unknown benchmark {unknown[0]!r}. Expected some of {list(BENCHMARKS)}.")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError(EVAL_EXTRA) from error
    opened(AutoTokenizer, _model_arguments(model)["pretrained"])
    placed = {"device": device} if device else {}
    language_model = HFLM(**_model_arguments(model), batch_size=batch_size, **placed)
    manager = TaskManager(include_path=str(tasks_path()), metadata={"data": data} if data else {})
    entries = []
    for name in names:
        benchmark = BENCHMARKS[name]
        found = simple_evaluate(
            model=language_model,
            tasks=[benchmark.task],
            num_fewshot=benchmark.shots,
            limit=limit,
            task_manager=manager,
            log_samples=False,
            bootstrap_iters=0,
        )
        entries.append(entry_of(name, found, limit))
    return entries


def entry_of(name: str, found: Mapping[str, Any], limit: int | None = None) -> dict[str, Any]:
    """A result of lm-eval as cards show it.

    Args:
        name: Key of `BENCHMARKS`.
        found: What `lm_eval.simple_evaluate` returned.
        limit: Rows of each task that were asked, if not all.

    Returns:
        The entry; a tag that stands for several tasks has the mean of their values.

    Raises:
        ValueError: If lm-eval returned no such metric.
    """
    benchmark = BENCHMARKS[name]
    results = found["results"]
    key, error = f"{benchmark.metric},{benchmark.filter}", f"{benchmark.metric}_stderr,{benchmark.filter}"
    parts = [results[benchmark.task]] if benchmark.task in results else list(results.values())
    values = [part[key] for part in parts if isinstance(part.get(key), int | float)]
    if not values:
        raise ValueError(f"lm-eval gave no {key} for {benchmark.task}; it gave {sorted(parts[0]) if parts else []}.")
    shots = sorted({count for count in (found.get("n-shot") or {}).values() if isinstance(count, int)})
    notes = [f"lm-eval {_version()}".strip(), benchmark.task, *(f"{count}-shot" for count in shots)]
    if limit is not None:
        notes.append(f"only {limit} rows of each task")
    entry: dict[str, Any] = {
        "name": benchmark.title,
        "dataset_id": benchmark.dataset_id,
        "task_id": benchmark.task_id or benchmark.task,
        "metric": benchmark.measure,
        "value": round(100 * sum(values) / len(values), 2),
        "notes": ", ".join(notes),
    }
    if limit is not None:
        entry["limit"] = limit
    stderr = parts[0].get(error)
    if len(parts) == 1 and isinstance(stderr, int | float):
        entry["stderr"] = round(100 * stderr, 2)
    return entry


def _version() -> str:
    try:
        return metadata.version("lm-eval")
    except metadata.PackageNotFoundError:
        return ""


def _model_arguments(model: str | Path) -> dict[str, Any]:
    """What lm-eval must be told: an adapter goes onto its base."""
    if is_adapter(Path(model)):
        return {"pretrained": read_json(Path(model) / ADAPTER_CONFIG)[BASE_KEY], "peft": str(model)}
    return {"pretrained": str(model)}


def merge_evaluations(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Old results with new ones added; one for the same task replaces the old one, but a part no whole."""
    merged: dict[tuple[str | None, str], dict[str, Any]] = {}
    for entry in [*old, *new]:
        key = entry.get("dataset_id"), entry["task_id"]
        if key not in merged or "limit" in merged[key] or "limit" not in entry:
            merged[key] = dict(entry)
    return [merged[key] for key in sorted(merged, key=str)]


def store_beside(model: str | Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    """Keep results in a model's folder, where `lmmixup push distiller` finds them.

    Returns:
        The file.
    """
    file = Path(model) / KEPT_EVALUATIONS
    old = read_json(file) if file.is_file() else []
    write_json(file, merge_evaluations(old, entries))
    return file
