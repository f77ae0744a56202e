"""A folder that is a complete dataset repository of the Hub: Parquet shards and a card with its configurations.

`load_dataset(FOLDER)` reads it without this package, and so do the Hub's viewer, TRL and any other reader of Parquet::

    README.md
    sft/train-5d41402a-00000-of-00001.parquet    sft/test-7d793037-00000-of-00001.parquet
    grpo/train-9f86d081-00000-of-00001.parquet   ...

A split's name holds a digest of its rows: `datasets` knows a folder again by what its card says, so with plain names a
repository that was built anew would come out of its cache with the old rows. The same clusters give the same bytes.
Words that come from outside, such as titles and licenses, are escaped in the card and cannot reach its front matter.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

from hf_lmmixup import licenses
from hf_lmmixup.cards import size_category
from hf_lmmixup.mixture_rows import FORMS
from hf_lmmixup.records import TaskType


ROWS_PER_SHARD = 20_000
"""About 40 MB of Parquet for clusters of ordinary size."""

TAGS = ("instruction-distillation", "lm-mixup", "trl")

CARD, PARTIAL = "README.md", ".partial"
WRITTEN = re.compile(rf"(?:train|test)-[0-9a-f]{{8}}-\d{{5}}-of-\d{{5}}\.parquet|\..+\.parquet{re.escape(PARTIAL)}")
"""Names of the files that a build leaves in the folder of a configuration, or left when it was stopped."""

KINDS = {
    TaskType.QA: "question and answer",
    TaskType.MCQ: "multiple choice",
    TaskType.TFQ: "true or false",
    TaskType.CS: "category and statement",
    TaskType.PARA: "paragraph",
}


@dataclass(frozen=True)
class Configuration:
    """One configuration of the repository.

    Attributes:
        name: What users pass as the second argument of `load_dataset`.
        form: `sft`, `grpo` or `raw`.
        clusters: Split -> its clusters.
    """

    name: str
    form: str
    clusters: dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Origin:
    """Where texts come from: a name, a license, and how many articles."""

    source: str
    license: str
    articles: int


def write_repository(
    folder: str | Path,
    configurations: Sequence[Configuration],
    *,
    title: str,
    description: str,
    origins: Sequence[Origin],
    rows_per_shard: int = ROWS_PER_SHARD,
) -> list[Path]:
    """Write the Parquet files, then the card; what an earlier build left in the configurations' folders goes last.

    Args:
        folder: Where the repository shall be; files that no build wrote stay as they are.
        configurations: The first is the default one.
        title: Headline of the card.
        description: Text of the card below it, in Markdown, by the caller: it is not escaped.
        origins: Provenance; `license_of` them becomes the license of the dataset.
        rows_per_shard: Rows of each Parquet file at most.

    Returns:
        The files written, in order, card last.

    Raises:
        ValueError: If there is no row at all, the licenses cannot be combined, or the folder is something else's.
    """
    if not any(clusters for configuration in configurations for clusters in configuration.clusters.values()):
        raise ValueError("There is no cluster to write; see the counts of dropped ones for the reason.")
    folder, files = Path(folder), []
    check_folder(folder)
    patterns: dict[str, dict[str, str]] = {}
    for configuration in configurations:
        (folder / configuration.name).mkdir(parents=True, exist_ok=True)
        patterns[configuration.name] = {}
        for split, clusters in configuration.clusters.items():
            part = folder / configuration.name, split, configuration.form, clusters, rows_per_shard
            stem, shards = _write_shards(*part)
            patterns[configuration.name][split] = f"{configuration.name}/{stem}-*.parquet"
            files += shards
    card, partial = folder / CARD, folder / f".{CARD}{PARTIAL}"
    partial.write_text(_card(configurations, patterns, title, description, origins), encoding="utf-8")
    partial.replace(card)
    for configuration in configurations:
        for path in (folder / configuration.name).iterdir():
            if WRITTEN.fullmatch(path.name) and path not in files:
                path.unlink()
    return [*files, card]


def check_folder(folder: Path) -> None:
    """Refuse a place that is not for a repository of clusters, before anything is computed.

    Raises:
        ValueError: If it is a file, or a folder with the README.md of something else.
    """
    if folder.is_file():
        raise ValueError(f"{folder} is a file. Name a folder for the dataset.")
    card = folder / CARD
    if card.is_file() and f"\n- {TAGS[1]}\n" not in card.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{card} is not the card of such a dataset, and would be overwritten. Name another folder.")


def license_of(origins: Sequence[Origin]) -> dict[str, Any]:
    """What the card's head says: the licenses that cover all origins, or `other` where one is not the Hub's.

    Raises:
        ValueError: If an origin allows no adaptations, or two exclude each other.
    """
    merged = licenses.merge({f"{origin.source} under {origin.license}": origin.license for origin in origins})
    return licenses.as_metadata(merged) if set(merged) <= licenses.LISTED else {"license": licenses.OTHER}


def _write_shards(
    folder: Path, split: str, form: str, clusters: list[dict[str, Any]], rows_per_shard: int
) -> tuple[str, list[Path]]:
    """The files of a split and how their names begin, which tells other rows apart."""
    features, row = FORMS[form]
    count = max(1, -(-len(clusters) // rows_per_shard))
    content = hashlib.sha256()
    numbered = [f"-{shard:05d}-of-{count:05d}.parquet" for shard in range(count)]
    for shard, number in enumerate(numbered):
        part = clusters[shard * rows_per_shard : (shard + 1) * rows_per_shard]
        rows = [row(cluster) for cluster in part]
        columns = {name: [cells[name] for cells in rows] for name in features}
        path = folder / f".{split}{number}{PARTIAL}"
        Dataset.from_dict(columns, features=features).to_parquet(path)
        content.update(path.read_bytes())
    stem = f"{split}-{content.hexdigest()[:8]}"
    partial = [folder / f".{split}{number}{PARTIAL}" for number in numbered]
    return stem, [path.replace(folder / f"{stem}{number}") for path, number in zip(partial, numbered, strict=True)]


def _card(
    configurations: Sequence[Configuration],
    patterns: Mapping[str, Mapping[str, str]],
    title: str,
    description: str,
    origins: Sequence[Origin],
) -> str:
    head = yaml.safe_dump(_front_matter(configurations, patterns, title, origins), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{head}---\n", f"# {escape(title)}\n", description.strip() + "\n", _forms_text(configurations)]
    parts += ["## Counts\n", _counts(configurations), "## Cluster sizes\n", _sizes(configurations)]
    parts += ["## Licenses and provenance\n", _provenance(origins)]
    return "\n".join(parts)


def _front_matter(
    configurations: Sequence[Configuration],
    patterns: Mapping[str, Mapping[str, str]],
    title: str,
    origins: Sequence[Origin],
) -> dict[str, Any]:
    return {
        **license_of(origins),
        "language": ["en"],
        "pretty_name": title,
        "task_categories": ["text-generation"],
        "size_categories": [size_category(len(_distinct(configurations)))],
        "tags": list(TAGS),
        "configs": [
            {
                "config_name": configuration.name,
                **({"default": True} if configuration is configurations[0] else {}),
                "data_files": [{"split": split, "path": path} for split, path in patterns[configuration.name].items()],
            }
            for configuration in configurations
        ],
    }


def _forms_text(configurations: Sequence[Configuration]) -> str:
    columns = {
        "sft": "`prompt` and `completion` as messages (TRL's conversational prompt-completion form)",
        "grpo": "`prompt` as messages, `task_type`, `reference` and `sources` for rewards",
        "raw": "the published columns `instruction`, `input`, `output`, `cot`",
    }
    lines = [f"| `{escape(c.name)}` | {columns[c.form]} |" for c in configurations]
    return "\n".join(["| configuration | columns |", "|---|---|", *lines]) + "\n"


def _distinct(configurations: Sequence[Configuration]) -> dict[tuple[str, str], dict[str, Any]]:
    """Each cluster once, by split and id, however many configurations show it."""
    return {
        (split, cluster["id"]): cluster
        for configuration in configurations
        for split, clusters in configuration.clusters.items()
        for cluster in clusters
    }


def _counts(configurations: Sequence[Configuration]) -> str:
    lines = []
    for configuration in configurations:
        for split, clusters in configuration.clusters.items():
            counts = Counter(cluster["task_type"] for cluster in clusters)
            cells = " | ".join(str(counts[kind]) for kind in TaskType)
            lines.append(f"| `{escape(configuration.name)}` | {split} | {cells} | {len(clusters)} |")
    titles = " | ".join(KINDS[kind] for kind in TaskType)
    return (
        "\n".join([f"| configuration | split | {titles} | all |", "|---" * (3 + len(TaskType)) + "|", *lines]) + "\n"
    )


def _sizes(configurations: Sequence[Configuration]) -> str:
    sizes = Counter(len(cluster["sources"]) for cluster in _distinct(configurations).values())
    lines = [f"| {size} | {sizes[size]} |" for size in sorted(sizes)]
    return "\n".join(["| weak texts | clusters |", "|---|---|", *lines]) + "\n"


def _provenance(origins: Sequence[Origin]) -> str:
    lines = [f"| {escape(o.source)} | {escape(o.license)} | {o.articles} |" for o in origins]
    return "\n".join(["| source | license | articles |", "|---|---|---|", *lines]) + "\n"


def escape(text: str) -> str:
    """Make a foreign text harmless in a Markdown table: one line, no table border, no tag."""
    plain = " ".join(text.split())
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")
