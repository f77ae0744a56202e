"""The distiller of a run: where it starts, what it is trained on, and the model after each training.

    untrained -> cold start (trl sft on MIXTURE) -> GRPO (trl grpo with the rewards)

Each training is a stage of the run directory. A training that was killed goes on from its last checkpoint.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from hf_lmmixup import bundled
from hf_lmmixup.encoder import has_fast_bfloat16
from hf_lmmixup.mixture import register
from hf_lmmixup.preflight import REGISTERED
from hf_lmmixup.prompt_lengths import CHECKOUT
from hf_lmmixup.recipe import AS_IT_IS, COLD_START, GRPO, TINY, UNTRAINED, Recipe, read_yaml
from hf_lmmixup.records import Progress
from hf_lmmixup.run_directory import STAGES, RunDirectory, write_json
from hf_lmmixup.tiny_distiller import build_tiny_distiller, cluster_texts
from hf_lmmixup.training import train, trl_command


REASONING_DOCUMENTS = 30
"""Documents into which the reasonings of the training clusters are gathered for reading."""

TRAINING = "training"


class Distiller:
    """The models of one run.

    Args:
        recipe: What to start from and how to train.
        directory: The run directory.
        environment: The variables that the rewards need in a training process.
        progress: Told what is going on.
    """

    def __init__(
        self, recipe: Recipe, directory: RunDirectory, environment: dict[str, str], progress: Progress
    ) -> None:
        self.recipe, self.directory = recipe, directory
        self.environment, self.progress = environment, progress

    @cached_property
    def models(self) -> list[tuple[str, str]]:
        """Name and place of the distiller before training and after each one; the last writes the dataset."""
        options = self.recipe.distiller
        is_trained = options.cold_start is not None or options.grpo is not None
        start = UNTRAINED if options.model == TINY or is_trained else AS_IT_IS
        models = [(start, str(self._tiny()) if options.model == TINY else options.model)]
        for title, stage, method, file in (
            (COLD_START, "5_cold_start", "sft", options.cold_start),
            (GRPO, "6_grpo", "grpo", options.grpo),
        ):
            if file is not None:
                models.append((title, str(self._train(title, stage, method, file, models[-1][1]))))
        return models

    def _tiny(self) -> Path:
        folder = self.directory.path / TRAINING / UNTRAINED
        if not folder.is_dir():
            self.progress("building the tiny distiller", 0, 0)
            with self.directory.writing(f"{TRAINING}/{UNTRAINED}") as partial:
                steps = self.recipe.distiller.reading_steps
                build_mini_distiller(partial, seed=self.recipe.seed, reading_steps=steps)
        return folder

    def _train(self, title: str, stage: str, method: str, file: str, model: str) -> Path:
        folder = self.directory.path / TRAINING / stage.partition("_")[2]
        if self.directory.has(stage):
            return folder
        training_recipe = self.recipe.training_file(file)
        trained = train(
            method,
            training_recipe,
            {
                "model_name_or_path": model,
                "seed": self.recipe.seed,
                **self._data(method),
                **_precision(training_recipe),
            },
            folder,
            environment=self.environment,
            on_step=lambda done, total: self.progress(f"{title}: trl {method}", done, total),
        )
        with self.directory.writing(f"{STAGES}/{stage}") as partial:
            write_json(partial / "history.json", trained.history)
        return folder

    def _data(self, method: str) -> dict[str, str | None]:
        """MIXTURE as a folder of Parquet files, which TRL loads without this package."""
        folder = self.directory.path / TRAINING / f"mixture_{method}"
        if not folder.is_dir():
            with self.directory.writing(f"{TRAINING}/{folder.name}") as partial:
                for split in ("train", "test"):
                    mixture(method, split).to_parquet(partial / f"{split}.parquet")
        return {"dataset_name": str(folder), "dataset_config": None}


def check_trainings(recipe: Recipe) -> None:
    """Look for TRL and the TRL recipes of a run before it begins: what is found later is found hours later.

    Raises:
        ImportError: If TRL is missing.
        FileNotFoundError: If a TRL recipe does not exist.
        ValueError: If one is no YAML mapping or names data of its own, or the cold start leaves an adapter, from which
            GRPO cannot go on.
    """
    options = recipe.distiller
    files = [file for file in (options.cold_start, options.grpo) if file]
    trainings = [read_yaml(recipe.training_file(file)) for file in files]
    if files:
        trl_command()
    for file, training in zip(files, trainings, strict=True):
        named = training.get("datasets") or training.get("dataset_name")
        if named not in (None, REGISTERED, CHECKOUT):
            raise ValueError(
                f"distiller: {file} names the data {named!r}, but a run trains on the bundled MIXTURE. Train on yours "
                "by `lmmixup train`, and name the folder of the trained model as the model of this recipe."
            )
    if options.cold_start and options.grpo and trainings[0].get("use_peft"):
        raise ValueError(
            f"distiller: {options.cold_start} trains an adapter, and GRPO starts from a whole model. Train it by "
            "itself with recipes/qlora.py --merge_to FOLDER, and name FOLDER as the model of this recipe."
        )


def _precision(training_recipe: Path) -> dict[str, bool]:
    """On a processor: bfloat16 where it is native. Others would imitate it, many times slower."""
    return {"bf16": has_fast_bfloat16()} if read_yaml(training_recipe).get("use_cpu") else {}


def mixture(form: str, split: str) -> Dataset:
    """The bundled MIXTURE in one of its forms."""
    register()
    rows: Dataset = load_dataset("mixture", form, split=split)
    return rows


def build_mini_distiller(path: str | Path, *, seed: int = 0, reading_steps: int = 200) -> Path:
    """Build the tiny distiller from the training clusters of the mini MIXTURE; it has read their texts, no more.

    Args:
        path: The model folder to write.
        seed: Seed of weights and reading.
        reading_steps: Optimizer steps of the reading.

    Returns:
        The folder.
    """
    clusters: list[dict[str, Any]] = [
        {**cluster, "sources": [weak["text"] for weak in cluster["weak"]]}
        for cluster in bundled.mini_clusters(split="train")
    ]
    documents = [[*cluster["sources"], cluster["target"]] for cluster in clusters]
    reasonings = [cluster["reasoning"] for cluster in clusters]
    documents += [reasonings[start::REASONING_DOCUMENTS] for start in range(REASONING_DOCUMENTS)]
    return build_tiny_distiller(
        path, cluster_texts(clusters), documents=documents, seed=seed, reading_steps=reading_steps
    )
