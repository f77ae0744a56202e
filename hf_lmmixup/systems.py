"""What is evaluated: the models of a run, any other model or adapter, and the extractive mode; and on which prompts.

    find_systems(["runs/quickstart"])   ->  {"untrained": "runs/quickstart/training/untrained", "cold start": ..., ...}
    find_systems(["free=Qwen/Qwen2.5-7B-Instruct", "extractive"])
    find_systems(["free=qwen2.5-7b@http://127.0.0.1:8000/v1"])      # behind an endpoint

In the words of arXiv 2510.20449 the model after the cold start is *SFT*, the one after GRPO is *GRPO*, and an instruct
model that is only prompted is *training-free*.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from hf_lmmixup.chat_model import ChatModel
from hf_lmmixup.distiller import TRAINING
from hf_lmmixup.encoder import Encoder, load_encoder
from hf_lmmixup.evaluation import rate_completions, score_completions, summarize
from hf_lmmixup.extractive import NAME as EXTRACTIVE
from hf_lmmixup.extractive import distill_extractively
from hf_lmmixup.mixture import register
from hf_lmmixup.overlap import TokenEncoder, check_rouge
from hf_lmmixup.prompts import format_completion, split_pair
from hf_lmmixup.recipe import AS_IT_IS, COLD_START, GRPO, TINY, UNTRAINED
from hf_lmmixup.records import Progress, TaskType, pair_text
from hf_lmmixup.run_directory import FACTS, LEDGER, read_json
from hf_lmmixup.secrecy import public_name
from hf_lmmixup.served_generation import SERVED_TIMEOUT, ServedGenerator
from hf_lmmixup.transport import check_url


REFERENCE = "reference"
"""The excellent texts themselves: what a perfect distiller would be given."""

COMPLETIONS = "completions.jsonl"

MAX_NEW_TOKENS = 1024
"""Longest completion unless a run says otherwise: several times the longest reference of the mini MIXTURE."""

FOLDERS = {UNTRAINED: "untrained", COLD_START: "cold_start", GRPO: "grpo"}
"""State of a run's distiller -> its folder in `training/`."""

WRITABLE = (TaskType.QA, TaskType.PARA)
"""Task types that the extractive mode can write."""


def evaluate_systems(
    systems: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    *,
    data: str,
    folder: str | Path,
    environment: Mapping[str, str],
    max_new_tokens: int = MAX_NEW_TOKENS,
    no_repeat_ngram_size: int = 0,
    batch_size: int = 32,
    chat_model: ChatModel | None = None,
    allow_http: bool = False,
    progress: Progress = lambda title, done, total: None,
) -> dict[str, Any]:
    """Let systems answer test prompts greedily, and score what they wrote.

    Args:
        systems: What `find_systems` returned.
        rows: What `mixture_test` returned.
        data: What the rows are called.
        folder: Where ratings and all completions (`completions.jsonl`) are written.
        environment: The `HF_LMMIXUP_*` variables that the rewards shall see.
        max_new_tokens: Longest completion.
        no_repeat_ngram_size: As in `LocalGenerator`; for models on this machine.
        batch_size: Completions written at the same time.
        chat_model: Rates the answers; `None` leaves the rating out.
        allow_http: Whether prompts may go unencrypted to another machine.
        progress: Told what is going on.

    Returns:
        `data`, `rows` and `systems`: plain data, see `evaluation`.

    Raises:
        ImportError: If an extra is missing; nothing is written then.
        ValueError: If a system's address is one that data may not go to; nothing is written then.
    """
    check_rouge()
    for model in systems.values():
        if url := _address(model):
            check_url(url, allow_http=allow_http)
    Path(folder).mkdir(parents=True, exist_ok=True)
    served = {"max_tokens": max_new_tokens, "timeout": SERVED_TIMEOUT, "allow_http": allow_http}
    local = {
        "max_new_tokens": max_new_tokens,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "batch_size": batch_size,
    }
    token_encoder, encoder = TokenEncoder(), load_encoder(environment.get("HF_LMMIXUP_ENCODER"))
    judged: list[dict[str, Any]] = []
    with (Path(folder) / COMPLETIONS).open("w", encoding="utf-8") as stream:
        for name, model in systems.items():
            own = [row for row in rows if model != EXTRACTIVE or row["task_type"] in WRITABLE]
            completions = _complete(name, model, own, encoder, served, local, progress)
            kinds = [row["task_type"] for row in own]
            columns = score_completions(
                completions,
                task_types=kinds,
                references=[row["reference"] for row in own],
                sources=[row["sources"] for row in own],
                environment=environment,
                token_encoder=token_encoder,
            )
            if chat_model is not None:
                progress(f"rating {name}", 0, 0)
                columns["rating"] = rate_completions(completions, kinds, chat_model, folder)
            for place, (row, text) in enumerate(zip(own, completions, strict=True)):
                scores = {title: values[place] for title, values in columns.items()}
                line = {"system": name, "id": row.get("id"), "task_type": row["task_type"], "completion": text}
                stream.write(json.dumps(line | scores, ensure_ascii=True) + "\n")
            summary = summarize(columns, kinds, answered=[text is not None for text in completions])
            judged.append({"system": name, "model": public_name(model), **summary})
    return {"data": data, "rows": len(rows), "systems": judged}


def _complete(
    name: str,
    model: str,
    rows: Sequence[Mapping[str, Any]],
    encoder: Encoder,
    served: dict[str, Any],
    local: dict[str, Any],
    progress: Progress,
) -> list[str | None]:
    """What a system writes."""
    progress(name, 0, len(rows))
    if model == EXTRACTIVE:
        return write_extractively(rows, encoder)
    if model == REFERENCE:
        return reference_completions(rows)
    done = iter(range(1, len(rows) + 1))
    if url := _address(model):
        from hf_lmmixup.endpoint import EndpointModel

        generator: Any = ServedGenerator(EndpointModel(model.removesuffix(f"@{url}"), url, **served))
    else:
        from hf_lmmixup.generation import LocalGenerator

        generator = LocalGenerator(model, **local)
    prompts = [row["prompt"] for row in rows]
    return list(generator.generate(prompts, on_reply=lambda *_: progress(name, next(done, len(rows)), len(rows))))


def _address(model: str) -> str:
    """Where a system is served; empty for one on this machine."""
    _, at, rest = model.partition("@http")
    return f"http{rest}" if at else ""


def mixture_test(data: str = "bundled", limit: int | None = None) -> list[dict[str, Any]]:
    """The prompts to answer: the test split of a MIXTURE in its `grpo` form.

    Args:
        data: `bundled`, `hub`, or a folder: a copy of the published repository, or one of your own.
        limit: At most so many rows, spread over the task types.

    Returns:
        Rows with `prompt`, `task_type`, `reference` and `sources`.

    Raises:
        FileNotFoundError: If there is no such folder, or none of its files is MIXTURE's.
        ValueError: If the test split has no row.
    """
    register()
    if data in ("bundled", "hub"):
        rows: list[dict[str, Any]] = list(load_dataset("mixture", "grpo", split="test", source=data))
    elif (Path(data) / "grpo").is_dir():  # as `mixture_repository` writes it; streamed past the cache, see `loading`
        rows = list(load_dataset(data, "grpo", split="test", streaming=True))
    elif Path(data).is_dir():
        rows = list(load_dataset("mixture", "grpo", split="test", data_dir=data))
    else:
        raise FileNotFoundError(f"No folder at {data}. Expected 'bundled', 'hub', or a folder with MIXTURE files.")
    if not rows:
        raise ValueError(f"The test split of {data} has no row. Build it from more articles.")
    by_kind = [[place for place, row in enumerate(rows) if row["task_type"] == kind.value] for kind in TaskType]
    spread = [place for turn in zip_longest(*by_kind) for place in turn if place is not None]
    return [rows[place] for place in sorted(spread[:limit])]


def split_name(data: str) -> str:
    """What tables call the prompts of `mixture_test`."""
    named = {"bundled": "mini MIXTURE", "hub": "MIXTURE"}.get(data) or Path(data).resolve().name
    return f"{named}, test split"


def find_systems(targets: Sequence[str]) -> dict[str, str]:
    """Name -> model for everything that was named.

    Args:
        targets: Each a run directory (all of its models, the extractive mode and the references), `NAME=MODEL`, a
            model or adapter (folder, Hub id, or `MODEL@URL` behind an endpoint), `extractive` or `reference`.

    Returns:
        The systems in the order given; the models of the last two are their own names.

    Raises:
        ValueError: If two systems have one name, or a name is given to a whole run.
    """
    found: list[tuple[str, str]] = []
    for target in targets:
        name, given, model = target.partition("=")
        if is_run(Path(target)):
            found += [*models_of(Path(target)).items(), (EXTRACTIVE, EXTRACTIVE), (REFERENCE, REFERENCE)]
        elif given and not Path(target).is_dir():
            if is_run(Path(model)):
                raise ValueError(
                    f"{model} is a run directory, and {name} stands for one model. Name one of its models: "
                    f"{name}={model}/distiller."
                )
            found.append((name, model))
        else:
            found.append((Path(target.partition("@http")[0]).name, target))
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two systems are called {name!r}. Name them one by one, as in a=MODEL b=MODEL.")
    return dict(found)


def is_run(path: Path) -> bool:
    """Whether a folder is a finished run."""
    return (path / FACTS).is_file() and (path / LEDGER).is_file()


def models_of(run: Path) -> dict[str, str]:
    """The states of a run's distiller -> where each lies; states that were deleted or never existed are left out."""
    facts = read_json(run / FACTS)
    start = ((facts.get("recipe") or {}).get("distiller") or {}).get("model")
    models: dict[str, str] = {}
    for state in facts.get("models") or []:
        folder = run / TRAINING / FOLDERS.get(state, state)
        if folder.is_dir():
            models[state] = str(folder)
        elif state in (UNTRAINED, AS_IT_IS) and start and start != TINY:
            models[state] = str(start)
    if not any(state in models for state in (COLD_START, GRPO)) and (run / "distiller").is_dir():
        models["distiller"] = str(run / "distiller")
    return models


def write_extractively(rows: Sequence[Mapping[str, Any]], encoder: Encoder) -> list[str | None]:
    """What the extractive mode makes of test rows; `None` for task types whose form it cannot write."""
    completions: list[str | None] = [None] * len(rows)
    for kind in WRITABLE:
        members: dict[str, list[Any]] = {name: [] for name in ("id", "prompt", "completion", "cluster_id")}
        for place, row in enumerate(rows):
            for number, text in enumerate(row["sources"] if row["task_type"] == kind.value else []):
                prompt, completion = (split_pair(text) if kind is TaskType.QA else None) or ("", text)
                values = (f"{place}-{number}", prompt, completion, place)
                for column, value in zip(members.values(), values, strict=True):
                    column.append(value)
        if not members["id"]:
            continue
        for row in distill_extractively(Dataset.from_dict(members), encoder, task_type=kind).dataset:
            answer = pair_text(row["prompt"], row["completion"]) if kind is TaskType.QA else row["completion"]
            completions[row["cluster_id"]] = format_completion(row["reasoning"], answer)
    return completions


def reference_completions(rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """The excellent texts in the form of completions."""
    return [format_completion("The reference.", row["reference"]) for row in rows]
