"""A folder that holds a model or a LoRA adapter: which of its files are the model, and what they must not say.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json  chat_template.jinja

Optimizer states, checkpoints, `training_args.bin` and logs are not the model.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from hf_lmmixup.cards import is_repo_id
from hf_lmmixup.publication import PublishedFile, published_file
from hf_lmmixup.run_directory import read_json
from hf_lmmixup.secrecy import public_name


ADAPTER_CONFIG = "adapter_config.json"
BASE_KEY = "base_model_name_or_path"

MODEL_FILES = (
    r"(?:model|adapter_model)(?:-\d{5}-of-\d{5})?\.safetensors",
    r"model\.safetensors\.index\.json",
    r"(?:config|generation_config|adapter_config)\.json",
    r"(?:tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json",
    r"merges\.txt|vocab\.txt|tokenizer\.model",
    r"chat_template\.jinja",
)

PATH_KEYS = ("_name_or_path", "name_or_path", BASE_KEY)
"""Entries of configurations in which libraries write down where a model was loaded from."""

TRAIN_EXTRA = 'Merging an adapter needs torch, transformers and peft: pip install "hf-lmmixup[train]"'


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def base_model_of(folder: Path) -> str | None:
    """The Hub id of the model that an adapter belongs to; None for whole models and local bases."""
    if not is_adapter(folder):
        return None
    base = read_json(folder / ADAPTER_CONFIG).get(BASE_KEY)
    return base if isinstance(base, str) and is_repo_id(base) and not Path(base).exists() else None


def published_model_file(file: PublishedFile, base_model: str | None) -> PublishedFile:
    """A file of a model as it may leave: its configuration names no folder of this machine.

    Raises:
        ValueError: If an adapter's base model is a local folder and no Hub id is given for it.
    """
    if not file.name.endswith("config.json") or not isinstance(file.content, Path):
        return file
    config = read_json(file.content)
    changed = dict(config)
    for key in PATH_KEYS:
        if isinstance(config.get(key), str):
            changed[key] = config[key] if is_repo_id(config[key]) else public_name(config[key])
    if file.name == ADAPTER_CONFIG:
        if base_model is None:
            raise ValueError(
                f"The adapter's base model is the local folder {config.get(BASE_KEY)!r}, which nobody else has. Push "
                "that first and name it with base_model=OWNER/NAME, or push with merge_adapter=True."
            )
        changed[BASE_KEY] = base_model
    if changed == config:
        return file
    return published_file(file.name, json.dumps(changed, indent=2, ensure_ascii=False) + "\n")


def merged_adapter(folder: Path, base_model: str | None) -> "tempfile.TemporaryDirectory[str]":
    """Merge an adapter into its base model.

    Args:
        folder: The adapter.
        base_model: Folder or Hub id of the base, where it is not the one that the adapter names.

    Returns:
        A temporary folder with the whole model and its tokenizer; it lives as long as the object.

    Raises:
        ImportError: If torch, transformers or peft is not installed.
        ValueError: If the folder holds no adapter.
    """
    if not is_adapter(folder):
        raise ValueError(f"{folder} holds no adapter: there is no {ADAPTER_CONFIG} in it. Leave merge_adapter out.")
    try:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError(TRAIN_EXTRA) from error

    config: dict[str, Any] = read_json(folder / ADAPTER_CONFIG)
    base = base_model or config[BASE_KEY]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), str(folder))
    workspace = tempfile.TemporaryDirectory(prefix="merged-")
    model.merge_and_unload(safe_merge=True).save_pretrained(workspace.name)
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    AutoTokenizer.from_pretrained(str(folder) if has_tokenizer else base).save_pretrained(workspace.name)
    return workspace
