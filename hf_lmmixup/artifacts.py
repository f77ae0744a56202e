"""The four things that a run publishes: which of its files leave, under which card, and what they were made from.

A folder is either a run directory or the artifact in it. Without the run's `facts.json` beside it, an artifact gets a
card that says what can be read from its own files. One artifact::

    dataset_publication(Path("runs/pile"), "ada/pile", licenses=("mit",))
        README.md  data/train-00000-of-00001.parquet  plots/scores.svg  run/ledger.json  run/recipe.yaml
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_lmmixup.card_markup import dump_yaml
from hf_lmmixup.cards import (
    BUNDLED_MIXTURE,
    BUNDLED_POOL,
    OWN_LICENSE,
    is_repo_id,
    render_dataset_card,
    render_datastore_card,
    render_model_card,
    render_space_card,
    source_name,
)
from hf_lmmixup.model_folder import MODEL_FILES, base_model_of, is_adapter, merged_adapter, published_model_file
from hf_lmmixup.publication import Publication, PublishedFile, gather, published_file
from hf_lmmixup.recipe import TINY
from hf_lmmixup.run_directory import FACTS, REPORT, read_json
from hf_lmmixup.run_facts import count_rows
from hf_lmmixup.secrecy import public_settings


LONGEST_FACTS = 50_000_000

DATA_FILES = r"data/(?:train|validation|test)-\d{5}-of-\d{5}\.parquet"
DATASTORE_FILES = (r"datastore\.safetensors", r"datastore\.json")
LEDGER, RECIPE = "run/ledger.json", "run/recipe.yaml"
EVALUATIONS = ".eval_results/lmmixup.yaml"
KEPT_EVALUATIONS = "evaluations.json"
"""Where a model folder that belongs to no run keeps the results of `lmmixup benchmark`."""

DATASET_PLOTS = ("scores", "cluster-sizes")
DISTILLER_PLOTS = ("held-out", "systems", "rewards-grpo", "loss-cold-start")
"""Figures of a run that a card shows, by name."""


@dataclass(frozen=True)
class Source:
    """Something that an artifact was made from.

    Attributes:
        name: What it is called; a Hub id where it has one.
        repo_type: `dataset` or `model` if the Hub knows its license.
        license: Its license where that is known without the Hub.
    """

    name: str
    repo_type: str | None = None
    license: str | None = None


def dataset_sources(path: Path) -> list[Source]:
    """The raw rows of a run."""
    facts = read_facts(path)
    given = facts.get("source_licenses") or {}
    if given:
        return [Source(name, "dataset" if is_repo_id(name) else None, value) for name, value in given.items()]
    return [_source((facts.get("recipe") or {}).get("input"), "dataset", BUNDLED_POOL, path)]


def distiller_sources(
    path: Path, *, base_model: str | None = None, merge_adapter: bool = False, datasets: Sequence[str] = ()
) -> list[Source]:
    """The model that a distiller started from, and what it was trained on."""
    if wrong := [name for name in datasets if not is_repo_id(name)]:
        raise ValueError(f"{wrong[0]!r} is no dataset on the Hub. Expected OWNER/NAME.")
    facts = read_facts(path)
    folder = _artifact(path, "distiller", ("config.json", "adapter_config.json"))
    base = base_model or base_model_of(folder) or ((facts.get("recipe") or {}).get("distiller") or {}).get("model")
    started = Source("the tiny model", license=OWN_LICENSE) if base == TINY else _source(base, "model", "", folder)
    trained = [Source(BUNDLED_MIXTURE, license=OWN_LICENSE)] if facts.get("models") else []
    return [started, *trained, *(Source(name, "dataset") for name in datasets)]


def datastore_sources(path: Path) -> list[Source]:
    """The rated rows of a datastore."""
    given = (read_facts(path).get("recipe") or {}).get("datastore")
    return [_source(given, "dataset", BUNDLED_MIXTURE, path)]


def dataset_publication(path: Path, repo_id: str, *, licenses: Sequence[str]) -> Publication:
    """The Parquet shards, the card with its plots, the ledger and the recipe."""
    folder = _artifact(path, "dataset", ("data",))
    files = gather(folder, [DATA_FILES])
    if not files:
        raise ValueError(f"{folder} holds no dataset: there is no file such as data/train-00000-of-00001.parquet.")
    facts = read_facts(path)
    rows = count_rows([folder / file.name for file in files])
    facts = {"rows": {"out": rows}, **facts, "repo_id": repo_id, "licenses": list(licenses)}
    facts.setdefault("name", repo_id.partition("/")[2])
    given = (facts.get("recipe") or {}).get("input")
    facts["datasets"] = facts.get("datasets") or ([given] if given and is_repo_id(given) else None)
    extra, facts["plots"] = _plots(facts, DATASET_PLOTS)
    if facts.get("ledger"):
        extra.append(published_file(LEDGER, json.dumps(facts["ledger"], indent=2, sort_keys=True) + "\n"))
        extra.append(published_file(RECIPE, dump_yaml(public_settings(facts.get("recipe") or {}))))
    card = published_file("README.md", render_dataset_card(facts))
    replaces = _any_of(DATA_FILES, *map(re.escape, (LEDGER, RECIPE, *map(_plot_file, DATASET_PLOTS))))
    return Publication("dataset", repo_id, "dataset", (card, *files, *extra), replaces, tuple(licenses))


def distiller_publication(
    path: Path,
    repo_id: str,
    *,
    licenses: Sequence[str],
    base_model: str | None = None,
    merge_adapter: bool = False,
    datasets: Sequence[str] = (),
) -> Publication:
    """The weights, tokenizer and configuration of a model or adapter, the card with its plots, and evaluations."""
    folder = _artifact(path, "distiller", ("config.json", "adapter_config.json"))
    workspace = merged_adapter(folder, base_model) if merge_adapter else None
    weights = Path(workspace.name) if workspace else folder
    base = base_model or base_model_of(folder)
    found = gather(weights, MODEL_FILES)
    if not any(file.name.endswith(".safetensors") for file in found):
        raise ValueError(f"{weights} holds no weights: there is no regular file such as model.safetensors in it.")
    files = [published_model_file(file, base) for file in found]
    facts = {**read_facts(path), "repo_id": repo_id, "licenses": list(licenses)}
    facts.setdefault("name", repo_id.partition("/")[2])
    start = ((facts.get("recipe") or {}).get("distiller") or {}).get("model")
    facts["base_model"] = base or (start if start and is_repo_id(start) else None)
    facts["datasets"] = list(datasets) or facts.get("datasets")
    facts["library"] = "peft" if is_adapter(weights) else "transformers"
    facts["own_tokenizer"] = any(file.name == "tokenizer_config.json" for file in files)
    facts["evaluations"] = facts.get("evaluations") or _kept_evaluations(folder)
    extra, facts["plots"] = _plots(facts, DISTILLER_PLOTS)
    if results := evaluation_results(facts["evaluations"]):
        extra.append(published_file(EVALUATIONS, results))
    card = published_file("README.md", render_model_card(facts))
    replaces = _any_of(*MODEL_FILES, *map(re.escape, (EVALUATIONS, *map(_plot_file, DISTILLER_PLOTS))))
    return Publication(
        "distiller", repo_id, "model", (card, *files, *extra), replaces, tuple(licenses), workspace=workspace
    )


def datastore_publication(path: Path, repo_id: str, *, licenses: Sequence[str]) -> Publication:
    """The two files of a datastore and its card."""
    folder = _artifact(path, "datastore", ("datastore.json",))
    facts = {**read_facts(path), "repo_id": repo_id, "licenses": list(licenses), "datastore": datastore_facts(folder)}
    facts.setdefault("name", repo_id.partition("/")[2])
    card = published_file("README.md", render_datastore_card(facts))
    return Publication(
        "datastore", repo_id, "dataset", (card, *gather(folder, DATASTORE_FILES)), licenses=tuple(licenses)
    )


def datastore_facts(folder: Path) -> dict[str, Any]:
    """What the card of a datastore says about it.

    Raises:
        ValueError: If the folder's files are not those of a datastore.
    """
    from hf_lmmixup.datastore import ScoredDatastore

    store = ScoredDatastore.load(folder)
    kinds = store.design.kinds.tolist()
    return {
        "rows": len(store),
        "width": int(store.embeddings.shape[1]),
        "task_types": {name: kinds.count(name) for name in sorted(set(kinds))},
        "encoder": source_name(store.encoder),
        "encoder_revision": store.encoder_revision,
        "k_transition": store.k_transition,
        "report": store.report,
    }


def report_publication(path: Path, repo_id: str, *, licenses: Sequence[str]) -> Publication:
    """The report as the page of a static Space."""
    page = path / REPORT if path.is_dir() else path
    if page.suffix != ".html" or not page.is_file() or page.is_symlink():
        raise ValueError(f"{path} is no report. Expected a run directory with {REPORT} in it, or such a file.")
    facts = {**read_facts(page), "licenses": list(licenses)}
    facts.setdefault("name", repo_id.partition("/")[2])
    files = published_file("README.md", render_space_card(facts)), published_file("index.html", page)
    return Publication("report", repo_id, "space", files, licenses=tuple(licenses))


PREPARATIONS: dict[str, Callable[..., Publication]] = {
    "dataset": dataset_publication,
    "distiller": distiller_publication,
    "datastore": datastore_publication,
    "report": report_publication,
}
SOURCES: dict[str, Callable[..., list[Source]]] = {
    "dataset": dataset_sources,
    "distiller": distiller_sources,
    "datastore": datastore_sources,
    "report": dataset_sources,
}


def evaluation_results(evaluations: Sequence[dict[str, Any]]) -> str:
    """Benchmark results in the form that the Hub shows on a model's page (https://huggingface.co/docs/hub/eval-results).

    Args:
        evaluations: Each with `dataset_id`, `task_id` and `value`; optional `dataset_revision`, `date`, `notes`,
            `source_url` and `source_name`. Those on a dataset that the Hub has not, or on a part of one (`limit`), are
            left out.

    Returns:
        The text of a file in `.eval_results/`; empty if no result is left.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    fields = ("dataset_id", "task_id", "value", "dataset_revision", "date", "notes", "source_url", "source_name")
    public = [entry for entry in evaluations if entry.get("dataset_id") and "limit" not in entry]
    entries = [EvalResultEntry(**{key: entry[key] for key in fields if key in entry}) for entry in public]
    return dump_yaml(eval_result_entries_to_yaml(entries)) if entries else ""


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of the run that a folder or file is or belongs to; empty if there are none."""
    for folder in (path, path.parent):
        file = folder / FACTS
        if file.is_file() and not file.is_symlink() and file.stat().st_size <= LONGEST_FACTS:
            facts = read_json(file)
            if isinstance(facts, dict) and "ledger" in facts:
                return facts
    return {}


def _kept_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Results that lie beside a model."""
    file = folder / KEPT_EVALUATIONS
    if not file.is_file() or file.is_symlink() or file.stat().st_size > LONGEST_FACTS:
        return []
    found = read_json(file)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _artifact(path: Path, name: str, signs: Sequence[str]) -> Path:
    """The artifact's folder: inside a run directory, or the folder itself."""
    if (path / name).is_dir():
        return path / name
    if any((path / sign).exists() for sign in signs):
        return path
    raise ValueError(
        f"{path} holds no {name}. Expected a run directory with {name}/ in it, or a folder with {signs[0]}."
    )


def _source(given: Any, repo_type: str, bundled: str, path: Path) -> Source:
    if given == "bundled":
        return Source(bundled, license=OWN_LICENSE)
    if given and is_repo_id(str(given)):
        return Source(str(given), repo_type)
    return Source(source_name(given) if given else path.name)


def _plots(facts: dict[str, Any], names: Sequence[str]) -> tuple[list[PublishedFile], list[tuple[str, str]]]:
    """Drawings of some figures as files, and their titles and paths for the card."""
    from hf_lmmixup.drawings import draw
    from hf_lmmixup.run_figures import run_figures

    figures = [figure for figure in run_figures(facts) if figure.name in names]
    files = [published_file(_plot_file(figure.name), draw(figure)) for figure in figures]
    return files, [(figure.title, _plot_file(figure.name)) for figure in figures]


def _plot_file(name: str) -> str:
    return f"plots/{name}.svg"


def _any_of(*patterns: str) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns)
