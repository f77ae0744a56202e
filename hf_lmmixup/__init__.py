"""Instruction distillation (LM-Mixup) for the Hugging Face stack: many weak pairs in, few excellent ones out.

Importing the package registers `load_dataset("mixture")` and loads no torch. Public names are loaded when first used.
"""

from typing import TYPE_CHECKING

from hf_lmmixup.mixture import register as _register
from hf_lmmixup.public_names import load_when_used


if TYPE_CHECKING:
    from hf_lmmixup.clustering import cluster
    from hf_lmmixup.datastore import ScoredDatastore
    from hf_lmmixup.distillation import distill
    from hf_lmmixup.encoder import load_encoder
    from hf_lmmixup.generation import LocalGenerator
    from hf_lmmixup.hub import push_datastore
    from hf_lmmixup.loading import load_rows
    from hf_lmmixup.pipeline import run
    from hf_lmmixup.rating import rate
    from hf_lmmixup.recipe import Recipe, load_recipe
    from hf_lmmixup.records import Distillation, Outcome, Rating, TaskType
    from hf_lmmixup.rewards import alignment_reward, coverage_reward, format_reward, mixup_reward, quality_reward
    from hf_lmmixup.selection import merge, select
    from hf_lmmixup.tiny_distiller import build_tiny_distiller

__version__ = "0.1.0.dev0"

_MODULE_OF = {
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
    "merge": "selection",
    "mixup_reward": "rewards",
    "push_datastore": "hub",
    "quality_reward": "rewards",
    "rate": "rating",
    "run": "pipeline",
    "select": "selection",
}
"""Public name -> the module it lives in."""

__all__ = [
    "Distillation",
    "LocalGenerator",
    "Outcome",
    "Rating",
    "Recipe",
    "ScoredDatastore",
    "TaskType",
    "__version__",
    "alignment_reward",
    "build_tiny_distiller",
    "cluster",
    "coverage_reward",
    "distill",
    "format_reward",
    "load_encoder",
    "load_recipe",
    "load_rows",
    "merge",
    "mixup_reward",
    "push_datastore",
    "quality_reward",
    "rate",
    "run",
    "select",
]

_register()

if not TYPE_CHECKING:  # which would take it for a promise that every name exists
    __getattr__, __dir__ = load_when_used(__name__, _MODULE_OF, __all__)
