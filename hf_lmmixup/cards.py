"""Cards: the README.md of everything that a run publishes, rendered from the facts of the run.

    (folder / "README.md").write_text(render_dataset_card(facts), encoding="utf-8")

Facts are what `facts.json` of a run directory holds, as far as it is known; a card leaves out the rest. A publication
adds `repo_id`, `licenses`, `plots` (paths in the repository), and for a distiller `library`, `base_model` and
`own_tokenizer`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lmmixup.card_markup import decimal, dump_yaml, fenced, one_line, render_card
from hf_lmmixup.figures import REWARDS, Facts, by_model, given_scores, score_text, score_title
from hf_lmmixup.licenses import OTHER, UNKNOWN, as_metadata
from hf_lmmixup.recipe import COLD_START, EXTRACTIVE, GRPO, TINY, TRAINED, TRAINED_BEFORE
from hf_lmmixup.secrecy import public_name, public_settings


PAPER = "2510.20449"
"""arXiv id of LM-Mixup."""

OWN_LICENSE = "apache-2.0"
"""License of the rows that come with the package; they were written for it."""

TAGS = ("instruction-distillation", "lm-mixup", "hf_lmmixup")

BUNDLED_POOL = "the demo pool that comes with hf_lmmixup"
BUNDLED_MIXTURE = "the mini MIXTURE that comes with hf_lmmixup"

PLACE = "path/to/this/folder"
"""What a card that is not published yet calls itself in its code."""

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
"""Rows -> the Hub's `size_categories` (https://huggingface.co/docs/hub/datasets-cards)."""

JUDGED = ("auc", "spearman", "calibration_error")
"""What the report of a datastore says of each judge."""


def render_dataset_card(facts: Facts) -> str:
    """The card of a distilled dataset.

    Args:
        facts: The facts of a run. Optional: `licenses` (Hub ids), `language` (ISO codes), `datasets` (Hub ids of the
            sources), `repo_id`, `plots`.

    Returns:
        The text of README.md.
    """
    head = {
        "language": _listed(facts.get("language")),
        **as_metadata(licenses_of(facts)),
        "pretty_name": one_line(facts.get("name", "run")),
        "size_categories": [size_category(facts["rows"]["out"])],
        "task_categories": ["text-generation"],
        "tags": [*TAGS, "synthetic"],
        "source_datasets": _listed(facts.get("datasets")),
    }
    return render_card(
        "dataset_card.md.jinja",
        head,
        _common(facts)
        | {
            "rows": facts["rows"],
            "ledger": ledger_rows(facts),
            "notes": (facts.get("ledger") or {}).get("notes") or [],
            "source": source_name((facts.get("recipe") or {}).get("input")),
            "scores": _score_rows(facts),
        },
    )


def render_model_card(facts: Facts) -> str:
    """The card of a distiller: a whole model, or an adapter.

    Args:
        facts: The facts of a run. Optional: `licenses`, `language`, `base_model` (Hub id), `library` (`transformers`
            or `peft`), `own_tokenizer` (whether an adapter comes with one), `datasets` (Hub ids it was trained on),
            `repo_id`, `plots`, `evaluations`, `mixture_test`.

    Returns:
        The text of README.md, with the held-out rewards and `evaluations` as `model-index`.
    """
    library, base = facts.get("library") or "transformers", facts.get("base_model")
    trained = _distiller(facts)["trained"]
    head = {
        "language": _listed(facts.get("language")),
        **as_metadata(licenses_of(facts), several=False),
        "library_name": library,
        "pipeline_tag": "text-generation",
        "base_model": base,
        "base_model_relation": ("adapter" if library == "peft" else "finetune") if base else None,
        "datasets": _listed(facts.get("datasets")),
        "tags": [*TAGS, *(["trl"] if trained else []), *(tag for tag in ("grpo",) if "GRPO" in trained)],
        "model-index": model_index(facts),
    }
    values = {"library": library, "base": base, "evaluations": facts.get("evaluations") or []}
    values |= {"own_tokenizer": facts.get("own_tokenizer", False), "test": _systems(facts)}
    return render_card("model_card.md.jinja", head, _common(facts) | values)


def render_datastore_card(facts: Facts) -> str:
    """The card of a datastore.

    Args:
        facts: `datastore` with `rows`, `width`, `task_types` (name -> rows), `encoder`, `encoder_revision`,
            `k_transition` and `report` (how well its judges predict held-out rows); optional as for the other cards.

    Returns:
        The text of README.md.
    """
    head = {
        "language": _listed(facts.get("language")),
        **as_metadata(licenses_of(facts)),
        "pretty_name": f"{one_line(facts.get('name', 'run'))} datastore",
        "size_categories": [size_category(facts["datastore"]["rows"])],
        "tags": [*TAGS, "embeddings"],
        "viewer": False,
    }
    return render_card(
        "datastore_card.md.jinja",
        head,
        _common(facts) | {"datastore": facts["datastore"], "judges": _judges(facts["datastore"].get("report") or {})},
    )


def render_space_card(facts: Facts) -> str:
    """The card of a report as a static Space."""
    head = {
        "title": one_line(f"{facts.get('name', 'run')} report")[:60],
        "sdk": "static",
        "app_file": "index.html",
        "pinned": False,
        **as_metadata(licenses_of(facts), several=False),
        "tags": list(TAGS),
    }
    return render_card("space_card.md.jinja", head, _common(facts))


def licenses_of(facts: Facts) -> tuple[str, ...]:
    """Licenses of what a run made: those it was told, that of the bundled rows, or `unknown`."""
    if given := facts.get("licenses") or facts.get("license"):
        return tuple(_listed(given))
    return (OWN_LICENSE,) if (facts.get("recipe") or {}).get("input") == "bundled" else (UNKNOWN,)


def size_category(rows: int) -> str:
    """The Hub's size category for a number of rows."""
    return next((name for limit, name in SIZES if rows < limit), "100M<n<1B")


def source_name(source: Any) -> str:
    """What a card calls the input of a run: never a path of the machine that it was made on."""
    text = one_line(source or "of unknown origin")
    if text == "bundled":
        return BUNDLED_POOL
    return text if is_repo_id(text) else public_name(text if text.startswith(("/", "http")) else f"./{text}")


def is_repo_id(text: str) -> bool:
    """Whether a text is a Hub id with an owner, and not the path of a file."""
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", text) is not None
    return named and re.search(r"\.(jsonl?|parquet|csv|tsv|txt|arrow|gz|zst|ya?ml)$", text) is None


def with_local_paths(settings: Any) -> Any:
    """Settings in which no path of this machine looks like a Hub id: a folder `data/pile` becomes `./data/pile`."""
    if isinstance(settings, Mapping):
        return {name: with_local_paths(value) for name, value in settings.items()}
    local = isinstance(settings, str) and is_repo_id(settings) and Path(settings).exists()
    return f"./{settings}" if local else settings


def ledger_rows(facts: Facts) -> list[tuple[str, str, int]]:
    """State, detail and rows, for every state that a raw row can end in; empty if there are no books."""
    ledger = facts.get("ledger")
    if not ledger:
        return []
    return [
        ("kept", "in the dataset as they were", ledger["kept"]),
        ("merged", f"into {ledger.get('distilled_rows', 0):,} distilled rows of the dataset", ledger["merged"]),
        *(("dropped", reason, count) for reason, count in ledger["dropped"].items()),
    ]


def model_index(facts: Facts) -> list[dict[str, Any]]:
    """Held-out rewards of the finished distiller, and evaluations on whole benchmarks, as the Hub's `model-index`."""
    held_out = list(by_model(facts, "held_out").values())[-1:]
    results = [
        {
            "task": {"type": "text-generation", "name": "Instruction distillation"},
            "dataset": {"type": "mixture", "name": "mini MIXTURE, held-out topics", "split": "test"},
            "metrics": [
                {"type": f"{name}_reward", "name": f"Mean {name} reward", "value": round(judged[name], 4)}
                for name in REWARDS
                if judged.get(name) is not None
            ],
        }
        for judged in held_out
    ]
    for entry in [entry for entry in facts.get("evaluations") or [] if "limit" not in entry]:
        place = entry.get("dataset_id") or "custom"
        data = {"type": place, "name": one_line(entry.get("name") or place)}
        metric = {"type": one_line(entry.get("metric") or "accuracy"), "value": entry["value"]}
        results.append({"task": {"type": "text-generation"}, "dataset": data, "metrics": [metric]})
    kept = [result for result in results if result["metrics"]]
    return [{"name": one_line(facts.get("name", "run")), "results": kept}] if kept else []


def _common(facts: Facts) -> dict[str, Any]:
    """What every body may use."""
    recipe = public_settings(facts.get("recipe") or {})
    judged = by_model(facts, "held_out")
    return {
        "name": facts.get("name", "run"),
        "repo_id": one_line(facts.get("repo_id") or PLACE),
        "licenses": [value.removeprefix(f"{OTHER}:") for value in licenses_of(facts)],
        "plots": facts.get("plots") or [],
        "versions": facts.get("versions") or {},
        "recipe": fenced(dump_yaml(recipe), "yaml") if recipe else "",
        "distiller": _distiller(facts),
        "judged": [[state, *(decimal(result.get(name)) for name in REWARDS)] for state, result in judged.items()],
        "paper": PAPER,
    }


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [one_line(item) for item in ([value] if isinstance(value, str) else value)]


def _distiller(facts: Facts) -> dict[str, Any]:
    """What wrote the distilled rows: the model it started from, and its trainings in this run."""
    options = (facts.get("recipe") or {}).get("distiller") or {}
    mode, given, names = options.get("mode", TRAINED), options.get("model"), facts.get("models") or []
    return {
        "extractive": mode == EXTRACTIVE,
        "known": bool(given) and mode != EXTRACTIVE,
        "tiny": given == TINY,
        "start": source_name(given) if given else "",
        "trained": [name for name in names if name in (COLD_START, GRPO)] if mode == TRAINED else [],
        "trained_before": TRAINED_BEFORE in names,
    }


def _judges(report: Mapping[str, Any]) -> list[list[str]]:
    """How well each judge of a datastore predicts rows that it had not seen; the one in use is marked."""
    return [
        [
            f"{name} (in use)" if name == report.get("default") else name,
            *(decimal(report[name].get(key)) for key in JUDGED),
        ]
        for name in ("head", "neighbors")
        if isinstance(report.get(name), Mapping)
    ]


def _systems(facts: Facts) -> dict[str, Any]:
    """The systems of `lmmixup evaluate` as a table: heads, and a row for each."""
    found = facts.get("mixture_test") or {}
    entries = found.get("systems") or []
    names = given_scores(entries)
    heads = ["system", "prompts", *map(score_title, names)]
    rows = [
        [entry["system"], f"{entry['rows']:,}", *(score_text(name, entry["means"].get(name)) for name in names)]
        for entry in entries
    ]
    return {"data": found.get("data") or "", "heads": heads, "rows": rows}


def _score_rows(facts: Facts) -> list[list[str]]:
    """How many rows have each score: raw, distilled, in the dataset."""
    scores = facts.get("scores") or {}
    columns: Sequence[Mapping[str, int]] = [scores.get(name) or {} for name in ("before", "distilled", "after")]
    classes = sorted({value for column in columns for value in column}, key=lambda value: (value == "none", value))
    return [[one_line(value), *(f"{column.get(value, 0):,}" for column in columns)] for value in classes]
