"""Cards: the README.md of everything that a run publishes, rendered from the facts of the run.

    (folder / "README.md").write_text(render_dataset_card(facts), encoding="utf-8")

A card is a YAML head that the Hub reads and a Markdown body for people. The head is dumped by a YAML library, never
pasted together, and every text in the body is escaped, so no name, reason or note of a run can add a key to the head,
a column to a table or HTML to the page. A card holds no time stamps: equal facts give equal bytes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined


PAPER = "2510.20449"
"""arXiv id of LM-Mixup."""

UNKNOWN_LICENSE = "unknown"
"""The Hub's word for: nobody said."""

BUNDLED_LICENSE = "apache-2.0"
"""License of the rows that come with the package; they were written for it."""

TAGS = ("instruction-distillation", "lm-mixup", "synthetic", "hf_lmmixup")

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
"""Rows -> the Hub's `size_categories` (https://huggingface.co/docs/hub/datasets-cards)."""

_MARKUP = re.compile(r"([\\`*_{}\[\]|#~$])")


def render_dataset_card(facts: Mapping[str, Any]) -> str:
    """The card of a distilled dataset.

    Args:
        facts: The facts of a run directory. Optional keys: `license` (a Hub license id), `language` (ISO codes),
            `repo_id`, `datasets` (Hub ids of the sources) and `base_model`.

    Returns:
        The text of README.md.
    """
    rows = facts["rows"]
    recipe = facts.get("recipe") or {}
    head = {
        "language": _listed(facts.get("language")),
        "license": license_of(facts),
        "pretty_name": one_line(facts.get("name", "run")),
        "size_categories": [size_category(rows["out"])],
        "task_categories": ["text-generation"],
        "tags": list(TAGS),
        "source_datasets": _listed(facts.get("datasets")),
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    }
    return _render(
        "dataset_card.md.jinja",
        head,
        facts=facts,
        ledger=ledger_rows(facts),
        repo_id=facts.get("repo_id") or "path/to/this/folder",
        license=head["license"],
        distiller=_distiller(facts),
        judged=_judged(facts),
        source=source_name(recipe.get("input")),
        scores=_score_rows(facts),
        versions=facts.get("versions") or {},
        paper=PAPER,
    )


def license_of(facts: Mapping[str, Any]) -> str:
    """The license of what a run made: the one it was told, that of the bundled rows, or `unknown`."""
    given = facts.get("license")
    if given:
        return one_line(given)
    bundled = (facts.get("recipe") or {}).get("input") == "bundled"
    return BUNDLED_LICENSE if bundled else UNKNOWN_LICENSE


def size_category(rows: int) -> str:
    """The Hub's size category for a number of rows."""
    return next((name for limit, name in SIZES if rows < limit), "100M<n<1B")


def source_name(source: Any) -> str:
    """What a card calls the input of a run: never a path of the machine that it was made on."""
    text = one_line(source or "unknown")
    if text == "bundled":
        return "the demo pool that comes with hf_lmmixup"
    return text if _is_repo_id(text) else re.split(r"[\\/]", text.rstrip("\\/"))[-1]


def ledger_rows(facts: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """State, detail and rows, for every state that a raw row can end in."""
    ledger = facts["ledger"]
    distilled = ledger.get("distilled_rows", 0)
    return [
        ("kept", "in the dataset as they were", ledger["kept"]),
        ("merged", f"into {distilled:,} distilled rows of the dataset", ledger["merged"]),
        *(("dropped", reason, count) for reason, count in ledger["dropped"].items()),
    ]


def one_line(text: Any) -> str:
    """A text without line breaks, runs of blanks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def escape(text: Any) -> str:
    r"""A text as one line of plain Markdown, in which nothing is markup, HTML or the end of a table cell.

    Example:
        >>> escape("a|b <script>")
        'a\\\\|b &lt;script&gt;'
    """
    plain = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", plain)


def _render(template: str, head: Mapping[str, Any], **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("hf_lmmixup", "templates"),
        autoescape=False,  # noqa: S701  Markdown: every text passes the `escape` filter instead
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"escape_markdown": escape, "one_line": one_line, "thousands": "{:,}".format}
    known = {name: value for name, value in head.items() if value not in (None, [], "")}
    front = yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=1_000)
    body = environment.get_template(template).render(**values)
    card = f"---\n{front}---\n\n{body}"
    return card.encode("utf-8", "replace").decode("utf-8")


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [one_line(item) for item in ([value] if isinstance(value, str) else value)]


def _is_repo_id(text: str) -> bool:
    return re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", text) is not None and not re.search(
        r"\.(jsonl?|parquet|csv|tsv|txt|gz|zst)$", text
    )


def _distiller(facts: Mapping[str, Any]) -> str:
    """One sentence on what wrote the distilled rows."""
    recipe = facts.get("recipe") or {}
    if recipe.get("mode") == "extractive":
        return "Distilled rows were put together from sentences of their sources, without a model."
    given = (recipe.get("distiller") or {}).get("model") or "unknown"
    if given == "tiny":
        start = "a tiny model (a few million parameters) that the run built from nothing"
    else:
        start = f"`{source_name(given).replace('`', '')}`"
    trained = [escape(name) for name in facts.get("models") or [] if name != "untrained"]
    how = f", trained in this run by {' and '.join(trained)}" if trained else ", not trained further"
    return f"Distilled rows were written by {start}{how}."


def _judged(facts: Mapping[str, Any]) -> list[list[str]]:
    """Held-out rewards by state of the distiller."""
    return [
        [escape(state), *(_decimal(result.get(name)) for name in ("format", "alignment", "quality", "total"))]
        for state, result in (facts.get("held_out") or {}).items()
    ]


def _score_rows(facts: Mapping[str, Any]) -> list[list[str]]:
    """How many rows have each score: raw, distilled, in the dataset."""
    scores = facts.get("scores") or {}
    columns: Sequence[Mapping[str, int]] = [scores.get(name) or {} for name in ("before", "distilled", "after")]
    classes = sorted({value for column in columns for value in column}, key=lambda value: (value == "none", value))
    return [[escape(value), *(f"{column.get(value, 0):,}" for column in columns)] for value in classes]


def _decimal(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}"
