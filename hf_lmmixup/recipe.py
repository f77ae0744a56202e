"""A run is one YAML file: which rows, which distiller, which thresholds.

`recipes/quickstart.yaml` is the smallest complete one. A recipe is parsed strictly: a key that does not exist stops
the run before anything is loaded, and the message names it and the keys that do. Training has files of its own, in the
words of TRL; a recipe only points to them, relative to itself::

    distiller: {model: tiny, cold_start: quickstart/sft.yaml, grpo: quickstart/grpo.yaml}
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_lmmixup.records import HIGH_SCORE


MAX_RECIPE_BYTES = 1_000_000


@dataclass(frozen=True)
class RateRecipe:
    """Rows with at least `threshold` are kept as they are; the others are clustered."""

    threshold: int = HIGH_SCORE


@dataclass(frozen=True)
class ClusterRecipe:
    """Sizes of clusters and what happens to rows without relatives; see `clustering.cluster`."""

    min_size: int = 2
    max_size: int = 5
    mean_size: float = 3.0
    std_size: float = 1.0
    min_similarity: float = 0.5
    singletons: str = "drop"


@dataclass(frozen=True)
class DistillerRecipe:
    """The model that rewrites clusters.

    Attributes:
        model: `tiny` (built locally), a folder or a Hub id.
        reading_steps: Optimizer steps in which the tiny model reads plain text before it learns to distil.
        cold_start: TRL recipe for supervised fine-tuning on MIXTURE; `null` skips it.
        grpo: TRL recipe for GRPO; `null` skips it.
        max_new_tokens: Longest completion in tokens.
        batch_size: Clusters written at the same time.
        attempts: How often a malformed completion is asked for again, the first time included.
        held_out: Prompts of the held-out split that are answered before and after each training step; 0 skips it.
    """

    model: str = "tiny"
    reading_steps: int = 250
    cold_start: str | None = None
    grpo: str | None = None
    max_new_tokens: int = 512
    batch_size: int = 32
    attempts: int = 2
    held_out: int = 45


@dataclass(frozen=True)
class SelectRecipe:
    """Which rows make the final dataset.

    Attributes:
        min_score: Smallest score of a distilled row.
        fallback_share: Where no distilled row reaches `min_score`, this share of them is kept, best first.
        size: Most rows in all; `null` for no limit.
        distilled_share: Wanted share of distilled rows; `null` takes all of both sides.
    """

    min_score: int = HIGH_SCORE
    fallback_share: float = 0.5
    size: int | None = None
    distilled_share: float | None = None


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
    rate: RateRecipe = field(default_factory=RateRecipe)
    cluster: ClusterRecipe = field(default_factory=ClusterRecipe)
    distiller: DistillerRecipe = field(default_factory=DistillerRecipe)
    select: SelectRecipe = field(default_factory=SelectRecipe)
    folder: Path = field(default=Path(), compare=False)

    def training_file(self, name: str) -> Path:
        """The TRL recipe that this recipe points to.

        Raises:
            FileNotFoundError: If there is none.
        """
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"The recipe {self.name} names {name}, but there is no file {path}.")
        return path

    def settings(self) -> dict[str, Any]:
        """What determines the result, as plain data; the run directory is not part of it."""
        plain = dataclasses.asdict(self)
        return {name: value for name, value in plain.items() if name not in ("output", "folder")}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises:
        FileNotFoundError: If there is neither; the message lists what comes with the package.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = bundled_recipes()
    for candidate in (folder / path, folder / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    known = sorted(str(file.relative_to(folder)) for file in folder.glob("*.yaml"))
    raise FileNotFoundError(f"No recipe at {path}. Give a file, or one of those that come with the package: {known}.")


def bundled_recipes() -> Path:
    """The folder of the recipes: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def load_recipe(path: str | Path, **overrides: Any) -> Recipe:
    """Read a recipe strictly.

    Args:
        path: The YAML file.
        **overrides: Top-level keys that replace those of the file; `None` leaves the file's value.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not plain YAML, or a key is unknown or has a value of the wrong type.
    """
    path = Path(path)
    values = read_yaml(path) | {key: value for key, value in overrides.items() if value is not None}
    return _fill(Recipe, {"folder": path.parent, **values}, where=path.name)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file of bounded size, without aliases and without code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is too large, not YAML, holds aliases or is not a mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No recipe at {path}.")
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise ValueError(f"{path} is larger than {MAX_RECIPE_BYTES} bytes; that is no recipe.")
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError(f"{path} holds a YAML alias (*name). Write the value out.")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path} must hold a mapping of names to values.")
    return values


def _fill(kind: Any, values: dict[str, Any], where: str) -> Any:
    fields = {one.name: one for one in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(fields)):
        allowed = sorted(set(fields) - {"folder"})
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}. Expected some of {allowed}.")
    missing = [name for name, one in fields.items() if _is_required(one) and name not in values]
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}.")
    return kind(**{name: _value(fields[name].type, value, f"{where}: {name}") for name, value in values.items()})


def _is_required(one: dataclasses.Field) -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a mapping, not {value!r}.")
        return _fill(kind, value, where)
    allowed = getattr(kind, "__args__", (kind,))
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed:
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, allowed):
        names = " or ".join("null" if one is type(None) else one.__name__ for one in allowed)
        raise ValueError(f"{where} is {value!r}, but must be {names}.")
    return value
