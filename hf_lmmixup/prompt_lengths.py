"""How long the prompts of a training are in tokens, without loading its model.

    measure_prompts({"model_name_or_path": "Qwen/Qwen2.5-1.5B-Instruct", "dataset_name": "mixture"})
    Measured(rows=180, longest=611, row=42, counts=(611, 598, ...), room=32768, columns=("id", ...), ...)

Only the tokenizer and the configuration of the model are read. A text has at most as many tokens as bytes, so that of
a large dataset only the longest texts need counting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_lmmixup.prompts import render


BATCH = 1000
"""Prompts that are counted at a time; the first ones, the longest texts, in any case."""

MOST_MEASURED = 20_000
"""Prompts that are counted at most."""

CHECKOUT = "dataset_scripts/mixture"
"""The data of our recipes for SFT: `trl sft` does not know the registered name."""

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
        wholes: Tokens of the longest prompts with their completions, where the data has both.
    """

    rows: int
    longest: int
    row: int
    counts: tuple[int, ...]
    room: int | None
    columns: tuple[str, ...]
    wholes: tuple[int, ...] = ()

    def over(self, limit: int) -> str:
        """How many prompts are longer than a limit; of many rows only the longest were counted."""
        found = sum(count > limit for count in self.counts)
        return f"{found:,}" if len(self.counts) == self.rows else f"at least {found:,}"

    def warnings(self, method: str, limit: int | None) -> list[str]:
        """What the columns and the completions say."""
        if method == "grpo":
            clash = "TRL does not hand the column `completion` to rewards. Call it `reference`."
            return [clash] if "completion" in self.columns else []
        cut = sum(limit is not None and count > limit for count in self.wholes)
        return [f"{cut:,} of {self.rows:,} completions are cut off: max_length is {limit:,} tokens."] if cut else []


def measure_prompts(config: Mapping[str, Any]) -> Measured:
    """Count the tokens of the longest prompts of a training.

    Args:
        config: Keys of a TRL recipe: model, dataset, split.

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
    counts = _longest(texts, tokenizer)
    wholes: dict[int, int] = {}
    if found[0] == "prompt" and "completion" in columns:
        whole = [text + _content(value) for text, value in zip(texts, rows["completion"], strict=True)]
        wholes = _longest(whole, tokenizer)
    longest = max(counts, key=lambda row: counts[row], default=0)
    return Measured(
        len(rows), counts.get(longest, 0), longest, tuple(counts.values()), room, columns, tuple(wholes.values())
    )


def _longest(texts: Sequence[str], tokenizer: Any) -> dict[int, int]:
    """Tokens of the longest texts, by row."""
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row].encode()))
    counts: dict[int, int] = {}
    for start in range(0, min(len(order), MOST_MEASURED), BATCH):
        batch = order[start : start + BATCH]
        if start and len(texts[batch[0]].encode()) <= max(counts.values()):
            break
        ids = tokenizer([texts[row] for row in batch], add_special_tokens=False)["input_ids"]
        counts.update({row: len(found) for row, found in zip(batch, ids, strict=True)})
    return counts


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
            why = str(error).rstrip(".")
            where = " A checkout has this folder: go there, or name another." if part["path"] == CHECKOUT else ""
            raise ValueError(f"The data {part['path']!r} cannot be loaded: {why}.{where}") from error
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


def _content(completion: Any) -> str:
    """The text of a completion; the template adds a token or two."""
    parts = [message.get("content") for message in completion] if isinstance(completion, list) else [completion]
    return "".join(part for part in parts if isinstance(part, str))
