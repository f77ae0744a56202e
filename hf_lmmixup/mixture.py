r"""`load_dataset("mixture")`: MIXTURE as a builder of the `datasets` library.

MIXTURE (arXiv 2510.20449) teaches a model to merge weak texts into an excellent one. `import hf_lmmixup` registers the
name; then any program that calls `load_dataset`, TRL's command line included, finds it::

    import hf_lmmixup
    from datasets import load_dataset

    load_dataset("mixture")                          # `sft`: TRL's conversational prompt and completion
    load_dataset("mixture", "grpo", split="train")   # prompts with `reference` and `task_type` for rewards
    load_dataset("mixture", "mcq", streaming=True)   # `sft` rows of one task type: qa, mcq, tfq, cs or para
    load_dataset("mixture", "raw")                   # the published columns

One row of `sft`::

    {"id": "9e1c...", "prompt": [{"role": "system", ...}, {"role": "user", "content": "Merge these ..."}],
     "completion": [{"role": "assistant", "content": "<think>...</think>\n<answer>Q: ...\nA: ...</answer>"}],
     "task_type": "qa", "topic": "tides", "source": "mini"}

`datasets` has no official door for other packages' builders. `register` uses the one that has kept its shape from 3.6
to 5.2: the table of packaged modules. Where it is missing, the name is not registered and everything else works; the
same rows are in the folder `dataset_scripts/mixture`, which any version loads without this package.
"""

import hashlib
import inspect
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
from datasets import Features, List, Value

from hf_lmmixup import bundled, corruption, prompts, records, wording
from hf_lmmixup.bundled import mini_clusters
from hf_lmmixup.prompts import distillation_messages, format_completion, linearize
from hf_lmmixup.records import TaskType, row_id


logger = logging.getLogger(__name__)

NAME = "mixture"
VERSION = "1.0.0"

MESSAGES = List({"role": Value("string"), "content": Value("string")})

SFT = Features(
    {
        "id": Value("string"),
        "prompt": MESSAGES,
        "completion": MESSAGES,
        "task_type": Value("string"),
        "topic": Value("string"),
        "source": Value("string"),
    }
)
"""Columns of `sft` and of the five task types: TRL trains on `prompt` and `completion`, and ignores the others."""

GRPO = Features(
    {
        "id": Value("string"),
        "prompt": MESSAGES,
        "task_type": Value("string"),
        "reference": Value("string"),
        "sources": List(Value("string")),
        "topic": Value("string"),
        "source": Value("string"),
    }
)
"""Columns of `grpo`. TRL hands all but `prompt` to the rewards; it would drop a column called `completion`."""

RAW = Features(
    {
        "id": Value("string"),
        "instruction": Value("string"),
        "input": Value("string"),
        "output": Value("string"),
        "cot": Value("string"),
        "task_type": Value("string"),
        "source": Value("string"),
    }
)
"""The published columns; `None` where a file has none."""


def sft_row(cluster: dict[str, Any]) -> dict[str, Any]:
    """One cluster as a row of `sft`: merge these weak texts, and this is how it is done."""
    completion = format_completion(cluster["reasoning"], cluster["target"])
    return {
        "id": cluster["id"],
        "prompt": distillation_messages(cluster["sources"], cluster["task_type"]),
        "completion": [{"role": "assistant", "content": completion}],
        "task_type": cluster["task_type"],
        "topic": cluster["topic"],
        "source": cluster["source"],
    }


def grpo_row(cluster: dict[str, Any]) -> dict[str, Any]:
    """One cluster as a row of `grpo`: the same prompt, and what rewards compare with."""
    return {
        "id": cluster["id"],
        "prompt": distillation_messages(cluster["sources"], cluster["task_type"]),
        "task_type": cluster["task_type"],
        "reference": cluster["target"],
        "sources": list(cluster["sources"]),
        "topic": cluster["topic"],
        "source": cluster["source"],
    }


def raw_row(cluster: dict[str, Any]) -> dict[str, Any]:
    """One cluster in the published columns."""
    system, user = distillation_messages(cluster["sources"], cluster["task_type"])
    merged = linearize(cluster["sources"])
    return {
        "id": cluster["id"],
        "instruction": user["content"].removesuffix(merged).strip(),
        "input": merged,
        "output": cluster["target"],
        "cot": cluster["reasoning"],
        "task_type": cluster["task_type"],
        "source": cluster["source"],
    }


FORMS = {"sft": (SFT, sft_row), "grpo": (GRPO, grpo_row), "raw": (RAW, raw_row)}


def bundled_clusters(split: str) -> list[dict[str, Any]]:
    """The mini's clusters of one split, with the keys that the row functions read.

    Task types take turns, so that the first rows hold all of them, and weak texts are shuffled, so that their order
    says nothing about where they come from.
    """
    rows = []
    for cluster in mini_clusters(split=split):
        texts = [weak["text"] for weak in cluster["weak"]]
        texts.sort(key=lambda text: row_id(cluster["id"], text))
        rows.append({**cluster, "sources": texts, "source": "mini"})
    by_type = [[row for row in rows if row["task_type"] == kind] for kind in TaskType]
    return [row for turn in zip(*by_type, strict=True) for row in turn]


@dataclass
class MixtureConfig(datasets.BuilderConfig):
    """What to load.

    Attributes:
        form: `sft`, `grpo` or `raw`.
        task_type: Only rows of this type; `None` for all five.
    """

    form: str = "sft"
    task_type: str | None = None


class Mixture(datasets.GeneratorBasedBuilder):
    """The builder behind `load_dataset("mixture")`."""

    VERSION = datasets.Version(VERSION)
    BUILDER_CONFIG_CLASS = MixtureConfig
    BUILDER_CONFIGS = [
        *(MixtureConfig(name=form, form=form, version=VERSION) for form in FORMS),
        *(MixtureConfig(name=kind.value, task_type=kind.value, version=VERSION) for kind in TaskType),
    ]
    DEFAULT_CONFIG_NAME = "sft"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Clusters of weak texts, each with one excellent text that merges them.",
            features=FORMS[self.config.form][0],
            license="apache-2.0",
            homepage="https://arxiv.org/abs/2510.20449",
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in ("train", "test")]

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        row = FORMS[self.config.form][1]
        for cluster in bundled_clusters(split):
            if self.config.task_type in (None, cluster["task_type"]):
                yield cluster["id"], row(cluster)


def builder_hash() -> str:
    """A part of the cache path that changes with whatever shapes the rows: the sources and data of this package."""
    digest = hashlib.sha256(VERSION.encode())
    for module in (bundled, corruption, prompts, records, wording, sys.modules[__name__]):
        digest.update(inspect.getsource(module).encode())
    digest.update(json.dumps(bundled.read_mini(), sort_keys=True).encode())
    return digest.hexdigest()


def register() -> bool:
    """Make `load_dataset("mixture")` work in this process; safe to call again.

    Returns:
        Whether the name is registered. `False` means that this version of `datasets` keeps its table of packaged
        modules elsewhere; a folder or a Hub repository of the same rows still loads.
    """
    try:
        from datasets import load
        from datasets.data_files import DataFilesDict
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as packaged

        factory, module = load.PackagedDatasetModuleFactory, load.DatasetModule
        original = factory.get_module
    except (ImportError, AttributeError) as error:
        logger.warning("load_dataset(%r) is not available with datasets %s: %s", NAME, datasets.__version__, error)
        return False
    packaged[NAME] = (__name__, builder_hash())
    if getattr(original, "serves_mixture", False):
        return True

    def get_module(self: Any) -> Any:
        # Without files the original would take every file of the current directory for data.
        if self.name != NAME or self.data_files is not None or self.data_dir is not None:
            return original(self)
        path, code_hash = packaged[NAME]
        return module(path, code_hash, {"data_files": DataFilesDict(), "dataset_name": NAME})

    get_module.serves_mixture = True  # type: ignore[attr-defined]
    factory.get_module = get_module
    return True
