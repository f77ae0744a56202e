"""How long the prompts of a training are in tokens, without loading its model.

    measure_prompts({"model_name_or_path": "Qwen/Qwen2.5-1.5B-Instruct", "dataset_name": "mixture"})
    Measured(rows=180, longest=611, row=42, counts=(611, 598, ...), room=32768, columns=("id", "prompt", ...))

Only the tokenizer and the configuration of the model are read. A text has at most as many tokens as bytes, so that of
a large dataset only the longest texts need counting.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_lmmixup.prompts import render


BATCH = 1000

RESERVED = ("prompts", "completions")
"""Columns that clash with what TRL itself hands to rewards."""


@dataclass(frozen=True)
class Measured:
    """Prompts of a dataset.

    Attributes:
        rows: Rows in the dataset.
        longest: Tokens of the longest prompt.
        row: Its number, from 0.
        counts: Tokens of the prompts that were counted.
        room: Positions of the model; `None` if its configuration names none.
        columns: Columns of the dataset.
    """

    rows: int
    longest: int
    row: int
    counts: tuple[int, ...]
    room: int | None
    columns: tuple[str, ...]

    def over(self, limit: int) -> int:
        """How many prompts are longer than a limit."""
        return sum(count > limit for count in self.counts)

    def warnings(self, method: str) -> list[str]:
        """What the columns say."""
        if method == "grpo" and "completion" in self.columns:
            return ["TRL does not hand the column `completion` to rewards. Call it `reference`."]
        return []


def measure_prompts(config: Mapping[str, Any], *, at_least: int = 100, at_most: int = 20_000) -> Measured:
    """Count the tokens of the longest prompts of a training.

    Args:
        config: Keys of a TRL recipe: model, dataset, split.
        at_least: Prompts to count in any case.
        at_most: Most prompts to count.

    Returns:
        What was counted.

    Raises:
        ValueError: If the data or the tokenizer cannot be loaded, or a column is missing or reserved.
    """
    rows = _rows(config)
    columns = tuple(rows.column_names)
    for name in RESERVED:
        if name in columns:
            raise ValueError(f"The dataset has a column {name!r}, which clashes with TRL's own. Rename it.")
    found = [name for name in ("prompt", "messages", config.get("dataset_text_field") or "text") if name in columns]
    if not found:
        raise ValueError(f"The dataset has no column `prompt`, only {list(columns)}.")
    tokenizer, room = _tokenizer(config)
    texts = [_rendered(tokenizer, value, row) for row, value in enumerate(rows[found[0]])]
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row].encode()))
    counts: dict[int, int] = {}
    for start in range(0, min(len(order), at_most), BATCH):
        batch = order[start : start + BATCH]
        if start >= at_least and len(texts[batch[0]].encode()) <= max(counts.values()):
            break
        ids = tokenizer([texts[row] for row in batch], add_special_tokens=False)["input_ids"]
        counts.update({row: len(found) for row, found in zip(batch, ids, strict=True)})
    longest = max(counts, key=lambda row: counts[row], default=0)
    return Measured(len(texts), counts.get(longest, 0), longest, tuple(counts.values()), room, columns)


def _rows(config: Mapping[str, Any]) -> Any:
    import datasets

    split = config.get("dataset_train_split") or "train"
    parts = list(
        config.get("datasets") or [{"path": config.get("dataset_name"), "name": config.get("dataset_config")}]
    )
    if not all(part.get("path") for part in parts):
        raise ValueError("The recipe names no data: give `dataset_name` or a list of `datasets`.")
    loaded = []
    for part in parts:
        options = {key: part.get(key) for key in ("name", "data_dir", "data_files")}
        try:
            rows = datasets.load_dataset(str(part["path"]), split=part.get("split") or split, **options)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise ValueError(f"The data {part['path']!r} cannot be loaded: {error}") from error
        loaded.append(rows.select_columns(part["columns"]) if part.get("columns") else rows)
    return loaded[0] if len(loaded) == 1 else datasets.concatenate_datasets(loaded)


def _tokenizer(config: Mapping[str, Any]) -> tuple[Any, int | None]:
    from transformers import AutoConfig, AutoTokenizer

    model, revision = str(config.get("model_name_or_path")), config.get("model_revision") or "main"
    if Path(model, "adapter_config.json").is_file() and not Path(model, "config.json").is_file():
        raise ValueError(
            f"model_name_or_path={model!r} is an adapter, and `trl` trains whole models. Merge it into its base model "
            "first, as `recipes/qlora.py --merge_to FOLDER` and `hf_lmmixup.four_bit.merge_adapter` do."
        )
    template = config.get("chat_template_path")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        found = AutoConfig.from_pretrained(model, revision=revision)
        if template and Path(template).is_file():
            tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
        elif template:
            tokenizer.chat_template = AutoTokenizer.from_pretrained(template).chat_template
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model_name_or_path={model!r} is neither a model folder nor a model on the Hub that can be read "
            f"({str(error).splitlines()[0]}) Train it first, or name another."
        ) from error
    return tokenizer, getattr(found, "max_position_embeddings", None)


def _rendered(tokenizer: Any, value: Any, row: int) -> str:
    """A prompt as the model reads it."""
    if isinstance(value, str):
        return value
    if not value:
        raise ValueError(f"Row {row} of the data has no prompt.")
    return render(tokenizer, value)
