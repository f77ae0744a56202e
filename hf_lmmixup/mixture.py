"""`load_dataset("mixture")`: MIXTURE as a builder of the `datasets` library.

MIXTURE (arXiv 2510.20449) teaches a model to merge weak texts into an excellent one. `import hf_lmmixup` registers the
name; then any program that calls `load_dataset`, TRL's command line included, finds it::

    import hf_lmmixup
    from datasets import load_dataset

    load_dataset("mixture")                          # the bundled mini as `sft`: conversational prompt and completion
    load_dataset("mixture", "grpo", split="train")   # prompts with `reference` and `task_type` for rewards
    load_dataset("mixture", "mcq", streaming=True)   # `sft` rows of one task type: qa, mcq, tfq, cs or para
    load_dataset("mixture", "raw")                   # the published columns
    load_dataset("mixture", source="hub")            # the published repository instead of the mini
    load_dataset("mixture", data_dir="MIXTURE")      # a copy of it

Rows are described in `mixture_rows`, the published files in `published`. The mini serves both forms from all of its
clusters; published rows are used once, 30 % of them for `sft` and 70 % for `grpo`.

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
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import datasets

from hf_lmmixup import bundled, corruption, mixture_rows, prompts, published, records, row_stream, wording
from hf_lmmixup.mixture_rows import FORMS
from hf_lmmixup.published import MixtureFile
from hf_lmmixup.records import TaskType


logger = logging.getLogger(__name__)

NAME = "mixture"
VERSION = "1.0.0"
SPLITS = ("train", "test")

SOURCES = ("bundled", "hub")

BUNDLED_SHARDS = 4
"""Parts in which the mini is generated, so that `num_proc` and distributed readers have something to share."""


@dataclass
class MixtureConfig(datasets.BuilderConfig):
    """What to load.

    Attributes:
        form: `sft`, `grpo` or `raw`.
        task_type: Only rows of this type; `None` for all five.
        source: `bundled` or `hub`; by default the files named by `data_dir` or `data_files`, else `bundled`.
        data_files: Set by `load_dataset`: split -> resolved paths.
    """

    form: str = "sft"
    task_type: str | None = None
    source: str | None = None
    data_files: Any = None

    def files(self) -> list[MixtureFile]:
        """The published files behind this configuration; empty for the bundled mini.

        Raises:
            ValueError: If the source is unknown or given twice.
            FileNotFoundError: If the folder holds no published file.
        """
        if self.source is not None and self.source not in SOURCES:
            raise ValueError(f"Unknown source {self.source!r}. Expected one of {list(SOURCES)}, or data_dir=FOLDER.")
        if self.source is not None and (self.data_dir or self.data_files):
            raise ValueError(
                f"source={self.source!r} and data_dir or data_files name the data twice; give one of them."
            )
        if self.data_files:
            return self._named_files()
        folder = published.REPOSITORY if self.source == "hub" else self.data_dir
        return published.find_files(folder) if folder else []

    def _named_files(self) -> list[MixtureFile]:
        """The files of `data_files`, with the splits that were given for them."""
        files = []
        for split, paths in dict(self.data_files or {}).items():
            for path in paths:
                file = published.describe(str(path), name=str(path).rpartition("/")[2], split=str(split))
                assert file is not None  # a split was given
                files.append(replace(file, form=self.form if file.form == "" else file.form, cold_start=False))
        return files

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """The cache key: the same for the same content wherever it lies, another one when a byte of it changes."""
        if not self.data_files:  # the empty mapping of `register` means the same as none at all
            self.data_files = None
        files = self.files()
        known = [[file.name, file.split, published.content_key(file)] for file in files]
        if not known and custom_features is None:
            return self.name if self.source is None else f"{self.name}-{self.source}"
        key = json.dumps([known, repr(custom_features)])
        return f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


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
            homepage="https://arxiv.org/abs/2510.20449",
        )

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Build the cache; an error in a row is shown as it is, not behind a general one.

        Raises:
            RowError: If a file is not MIXTURE.
        """
        try:
            super().download_and_prepare(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, row_stream.RowError):
                raise error.__cause__ from None
            raise

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        files = self.config.files()
        if not files:
            shards = list(range(BUNDLED_SHARDS))
            return [datasets.SplitGenerator(split, gen_kwargs={"split": split, "shards": shards}) for split in SPLITS]
        local = dl_manager.download([file.path for file in files])
        files = [replace(file, path=str(path)) for file, path in zip(files, local, strict=True)]
        instructions = published.known_instructions(files)
        generators = []
        for split in dict.fromkeys(file.split for file in files):
            chosen = published.choose_files(files, self.config.form, split, self.config.task_type)
            if chosen:
                parts = {"split": split, "shards": chosen, "instructions": instructions}
                generators.append(datasets.SplitGenerator(split, gen_kwargs=parts))
        if not generators:
            raise FileNotFoundError(
                f"No file for the configuration {self.config.name!r} among {[file.name for file in files]}. "
                "Files for `sft` are named merged_*.json, those for `grpo` train.json and test.json."
            )
        return generators

    def _generate_examples(
        self, split: str, shards: list, instructions: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        row = FORMS[self.config.form][1]
        for shard in shards:
            clusters = _bundled_part(split, shard) if isinstance(shard, int) else _file_part(shard, instructions)
            unusable = 0
            for number, cluster in enumerate(clusters):
                if self.config.task_type not in (None, cluster["task_type"]):
                    continue
                if self.config.form == "sft" and not cluster["reasoning"]:
                    unusable += 1
                    continue
                yield f"{shard if isinstance(shard, int) else shard.path}:{number}", row(cluster)
            if unusable:
                logger.warning("%s: left out %d rows without reasoning; `raw` has them.", shard.name, unusable)


def _file_part(file: MixtureFile, instructions: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    return published.read_clusters(file, instructions)


def _bundled_part(split: str, shard: int) -> list[dict[str, Any]]:
    """One of `BUNDLED_SHARDS` consecutive parts of a split of the mini."""
    clusters = bundled.mixture_clusters(split)
    ends = [len(clusters) * part // BUNDLED_SHARDS for part in (shard, shard + 1)]
    return clusters[ends[0] : ends[1]]


def builder_hash() -> str:
    """A part of the cache path that changes with whatever shapes the rows: the sources and data of this package."""
    digest = hashlib.sha256(VERSION.encode())
    shaping = (bundled, corruption, mixture_rows, prompts, published, records, row_stream, wording)
    for module in (*shaping, sys.modules[__name__]):
        digest.update(_source(module))
    digest.update(json.dumps([bundled.read_mini(), sorted(bundled.redrawn())], sort_keys=True).encode())
    return digest.hexdigest()


def _source(module: ModuleType) -> bytes:
    try:
        return inspect.getsource(module).encode()
    except OSError:  # installed without sources: the version has to tell
        return module.__name__.encode()


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
        # Without data_files the original takes every file of the folder for data, the current directory by default.
        if self.name != NAME or self.data_files is not None:
            return original(self)
        path, code_hash = packaged[NAME]
        return module(path, code_hash, {"data_files": DataFilesDict(), "dataset_name": NAME})

    get_module.serves_mixture = True  # type: ignore[attr-defined]
    factory.get_module = get_module
    return True
