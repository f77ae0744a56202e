"""Instruction distillation (LM-Mixup) for the Hugging Face stack: many weak pairs in, few excellent ones out.

Importing the package registers `load_dataset("mixture")` and loads no torch. Public names are loaded when first used.
"""

from importlib import import_module
from typing import Any

from hf_lmmixup.mixture import register as _register


__version__ = "0.1.0.dev0"

_PUBLIC = {
    "Distillation": "records",
    "LocalGenerator": "generation",
    "Outcome": "records",
    "Rating": "records",
    "Recipe": "recipe",
    "ScoredDatastore": "datastore",
    "TaskType": "records",
    "alignment_reward": "rewards",
    "build_tiny_distiller": "tiny_distiller",
    "cluster": "clustering",
    "coverage_reward": "rewards",
    "distill": "distillation",
    "format_reward": "rewards",
    "load_encoder": "encoder",
    "load_recipe": "recipe",
    "load_rows": "loading",
    "mixup_reward": "rewards",
    "push_datastore": "hub",
    "quality_reward": "rewards",
    "run": "pipeline",
    "select": "selection",
}
"""Public name -> the module it lives in."""

__all__ = ["__version__", *_PUBLIC]

_register()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. It offers {sorted(_PUBLIC)}.")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
