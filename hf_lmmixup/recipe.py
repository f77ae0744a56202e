"""A run is one YAML file: which rows, which distiller, which thresholds.

`recipes/quickstart.yaml` is the smallest complete one. A recipe is parsed strictly: a key that does not exist stops
the run before anything is loaded, and the message names it and the keys that do. Training has files of its own, in the
words of TRL; a recipe only points to them, relative to itself or by the name of one that comes with the package::

    distiller: {model: tiny, cold_start: quickstart/sft.yaml, grpo: quickstart/grpo.yaml}

Without training: `distiller: {mode: training-free, model: ..., endpoint: ...}`; without any model that writes:
`distiller: {mode: extractive}`.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_lmmixup import bounds
from hf_lmmixup.bounds import check, check_sizes
from hf_lmmixup.records import HIGH_SCORE
from hf_lmmixup.strict_yaml import fill, read_yaml


TRAINED, TRAINING_FREE, EXTRACTIVE = "trained", "training-free", "extractive"
MODES = (TRAINED, TRAINING_FREE, EXTRACTIVE)
"""Who distils: a model that the run trains or finds trained, an instruct model as it is, or no model at all."""

TINY = "tiny"
"""The model that a run builds itself."""

UNTRAINED, COLD_START, GRPO, TRAINED_BEFORE, AS_IT_IS = "untrained", "cold start", "GRPO", "trained before", "as it is"
"""States of a trained distiller: by these names the facts of a run list its models."""

ENGINES = ("transformers", "paged", "vllm")
"""What runs a model on this machine: batches of its own, the paged scheduler of transformers, vLLM."""


@dataclass(frozen=True)
class RateRecipe:
    """Rows with at least `threshold` are kept as they are; the others are clustered."""

    threshold: int = HIGH_SCORE

    def __post_init__(self) -> None:
        check(bounds.RATE, vars(self), "rate.")


@dataclass(frozen=True)
class DecontaminateRecipe:
    """Evaluation texts that no row may hold; rows are searched before rating, distilled rows after writing.

    Attributes:
        evaluations: Files (`.jsonl`, `.parquet`), folders or Hub ids of evaluation sets; `[]` searches for nothing.
        min_overlap: Share of an evaluation text's 8-grams from which a row holds it.
        min_similarity: Cosine from which a row rewords an evaluation text; `null` compares n-grams only.
    """

    evaluations: list[str] = field(default_factory=list)
    min_overlap: float = 0.5
    min_similarity: float | None = None

    def __post_init__(self) -> None:
        check(bounds.DECONTAMINATE, vars(self), "decontaminate.")


@dataclass(frozen=True)
class DeduplicateRecipe:
    """Of rows that say the same, the one with the best score stays.

    Attributes:
        max_similarity: Highest cosine between two rows that stay; `null` drops only rows with the same text, up to
            case and white space.
    """

    max_similarity: float | None = 0.99

    def __post_init__(self) -> None:
        check(bounds.DEDUPLICATE, vars(self), "deduplicate.")


@dataclass(frozen=True)
class FaithfulnessRecipe:
    """What a distilled row may make up and lose. Both rates are always columns; these bounds drop rows.

    Attributes:
        max_novelty: Largest share of its numbers, names and code that no source has; `null` drops none.
        min_coverage: Smallest share of its sources' facts that it keeps; `null` drops none.
    """

    max_novelty: float | None = None
    min_coverage: float | None = None

    def __post_init__(self) -> None:
        check(bounds.FAITHFULNESS, vars(self), "faithfulness.")


@dataclass(frozen=True)
class ClusterRecipe:
    """Sizes of clusters and what happens to rows without relatives; see `clustering.cluster`."""

    min_size: int = 2
    max_size: int = 5
    mean_size: float = 3.0
    std_size: float = 1.0
    min_similarity: float = 0.5
    singletons: str = "drop"

    def __post_init__(self) -> None:
        check(bounds.CLUSTER, vars(self), "cluster.")
        check_sizes(self.min_size, self.max_size, self.mean_size, "cluster.")


@dataclass(frozen=True)
class DistillerRecipe:
    """The model that rewrites clusters.

    Attributes:
        mode: `trained` (by the run, or before), `training-free` (an instruct model and our prompt) or `extractive`
            (no model: the best pair of a cluster and what only the others say).
        model: `tiny` (built locally), a folder or a Hub id; behind an endpoint the name that the server knows.
        engine: What runs the model here: `transformers`, `paged` or `vllm`.
        endpoint: Address of an OpenAI-compatible server, up to and with `/v1`; `null` runs the model here.
        allow_http: Whether an unencrypted address of another machine will do.
        key_variable: Environment variable that holds the server's key.
        concurrency: Requests in flight.
        temperature: Of the tries after the first one, which is greedy.
        max_prompt_tokens: Longest prompt; a longer cluster is split. `null` is what the model's window leaves; behind
            an endpoint, where no tokenizer is at hand, no limit.
        prompt_price: US dollars for a million tokens read, for the plan and the books; `null` if nobody charges.
        completion_price: US dollars for a million tokens written.
        reading_steps: Optimizer steps in which the tiny model reads plain text before it learns to distil.
        cold_start: TRL recipe for supervised fine-tuning on MIXTURE; `null` skips it.
        grpo: TRL recipe for GRPO; `null` skips it.
        max_new_tokens: Longest completion in tokens.
        no_repeat_ngram_size: No run of so many tokens is written twice in one completion; 0 allows it. Only the
            engine `transformers` knows it.
        batch_size: Clusters written at the same time.
        attempts: How often a malformed completion is asked for again, the first time included.
        held_out: Prompts of the held-out split that are answered before and after each training step; 0 skips it.
    """

    mode: str = TRAINED
    model: str = TINY
    engine: str = "transformers"
    endpoint: str | None = None
    allow_http: bool = False
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 16
    temperature: float = 0.7
    max_prompt_tokens: int | None = None
    prompt_price: float | None = None
    completion_price: float | None = None
    reading_steps: int = 200
    cold_start: str | None = None
    grpo: str | None = None
    max_new_tokens: int = 512
    no_repeat_ngram_size: int = 0
    batch_size: int = 32
    attempts: int = 2
    held_out: int = 45

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("engine", ENGINES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"distiller: {name} is {getattr(self, name)!r}, but must be one of {list(allowed)}.")
        check(bounds.DISTILLER, vars(self), "distiller.")
        if self.mode != EXTRACTIVE and self.endpoint is None and self.engine != "vllm":
            check(bounds.LOCAL_MODEL, vars(self), "distiller.")
        if self.no_repeat_ngram_size and (self.engine != "transformers" or self.endpoint):
            raise ValueError("distiller: no_repeat_ngram_size needs the engine transformers and no endpoint.")
        if self.mode != TRAINED and (self.cold_start or self.grpo):
            raise ValueError(f"distiller: mode {self.mode!r} trains nothing. Remove cold_start and grpo.")
        if self.mode == TRAINING_FREE and self.model == TINY:
            raise ValueError("distiller: mode 'training-free' needs an instruct model. Name one as `model`.")


@dataclass(frozen=True)
class SelectRecipe:
    """Which rows make the final dataset.

    Attributes:
        min_score: Smallest score of a distilled row.
        fallback_share: Where no distilled row reaches `min_score`, this share of them is kept, best first and at least
            one; 0 keeps none.
        size: Most rows in all; `null` for no limit.
        distilled_share: Wanted share of distilled rows; `null` takes all of both sides.
    """

    min_score: int = HIGH_SCORE
    fallback_share: float = 0.5
    size: int | None = None
    distilled_share: float | None = None

    def __post_init__(self) -> None:
        check(bounds.SELECT, vars(self), "select.")


@dataclass(frozen=True)
class Recipe:
    """A whole run; see the module's docstring.

    Attributes:
        name: What the run is called in its cards and report.
        seed: Seed of everything that draws.
        input: `bundled`, a file, a folder or a Hub dataset id.
        output: The run directory.
        limit: Read at most this many raw rows.
        encoder: Folder or Hub id of a sentence encoder; `null` is the offline MiniLM where it is installed.
        datastore: `bundled`, a folder or a Hub id of rated rows.
        folder: Where the recipe's file lies; its own paths are relative to it.
    """

    name: str
    seed: int = 0
    input: str = "bundled"
    output: str = "runs/lmmixup"
    limit: int | None = None
    encoder: str | None = None
    datastore: str = "bundled"
    decontaminate: DecontaminateRecipe = field(default_factory=DecontaminateRecipe)
    rate: RateRecipe = field(default_factory=RateRecipe)
    deduplicate: DeduplicateRecipe = field(default_factory=DeduplicateRecipe)
    cluster: ClusterRecipe = field(default_factory=ClusterRecipe)
    distiller: DistillerRecipe = field(default_factory=DistillerRecipe)
    faithfulness: FaithfulnessRecipe = field(default_factory=FaithfulnessRecipe)
    select: SelectRecipe = field(default_factory=SelectRecipe)
    folder: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        check(bounds.RUN, vars(self))
        if self.distiller.cold_start or self.distiller.grpo:
            check(bounds.TRAINED_RUN, vars(self))

    def training_file(self, name: str) -> Path:
        """The TRL recipe that this recipe points to.

        Raises:
            FileNotFoundError: If there is none.
        """
        for path in (self.folder / name, bundled_recipes() / name):
            if path.is_file():
                return path
        raise FileNotFoundError(f"The recipe {self.name} names {name}, but there is no file {self.folder / name}.")

    def settings(self) -> dict[str, Any]:
        """What determines the result, as plain data; the run directory is not part of it."""
        plain = dataclasses.asdict(self)
        return {name: value for name, value in plain.items() if name not in ("output", "folder")}


RUNS, TRAININGS, OTHERS = "*.yaml", "*/*.yaml", {"accelerate", "sftmix.yaml"}
"""Where the recipes of runs and those of TRL stand among ours, and what is neither: settings of accelerate, SFTMix."""


def find_recipe(name: str | Path, kind: str = RUNS) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Args:
        name: Path or name, with or without its suffix.
        kind: `RUNS` or `TRAININGS`, whichever the message lists if there is no such recipe.

    Raises:
        FileNotFoundError: If there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = bundled_recipes()
    for candidate in (folder / path, folder / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    ours = [file.relative_to(folder) for file in folder.glob(kind)]
    known = ", ".join(sorted(file.with_suffix("").as_posix() for file in ours if OTHERS.isdisjoint(file.parts)))
    raise FileNotFoundError(f"No recipe at {path}. Give a file, or one of those that come with the package: {known}.")


def bundled_recipes() -> Path:
    """The folder of the recipes: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def load_recipe(path: str | Path, **overrides: Any) -> Recipe:
    """Read a recipe strictly.

    Args:
        path: The YAML file, or the name of one that comes with the package.
        **overrides: Top-level keys that replace those of the file; `None` leaves the file's value.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not plain YAML, or a key is unknown or has a value of the wrong type or out of its
            bounds.
    """
    path = find_recipe(path)
    values = read_yaml(path) | {key: value for key, value in overrides.items() if value is not None}
    return fill(Recipe, {"folder": path.parent, **values}, where=path.name)
