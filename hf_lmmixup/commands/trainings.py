"""`lmmixup check` and `lmmixup train`: a TRL recipe, looked over before its model is loaded, and run with resuming."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from hf_lmmixup.console import errors, progress_bar, say


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe of TRL's: a file, or the name of one of ours.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Replace a key of the recipe; repeatable.")
]


def check(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Look for mistakes in a TRL recipe before its model is loaded.

    Unknown keys and values, rewards that do not exist, groups that do not fit, a missing package or datastore, data
    that cannot be loaded, prompts longer than the limit, tokens that would be stored in checkpoints.

    For example:

        lmmixup check quickstart/grpo --set model_name_or_path=models/tiny-distiller

        lmmixup check recipes/qwen2.5-1.5b/grpo.yaml --set model_name_or_path=models/mine
    """
    from hf_lmmixup.preflight import check as look_over
    from hf_lmmixup.recipe import TRAININGS, find_recipe

    with errors():
        file = find_recipe(recipe, TRAININGS)
        method, config = _read(file, overrides)
        found = look_over(method, config)
    for warning in found.warnings:
        say(f"[yellow]Note:[/] {escape(warning)}")
    limit = "no limit" if found.limit is None else f"limit {found.limit:,}"
    say(
        f"{escape(str(file))} is in order: {found.rows:,} rows; the longest prompt has {found.longest:,} tokens "
        f"({limit})."
    )


def train(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check a TRL recipe, then run it by `trl`, from its own last checkpoint if there is one.

    For example:

        lmmixup train recipes/quickstart/sft.yaml

        lmmixup train recipes/qwen2.5-1.5b/sft.yaml --set accelerate_config=recipes/accelerate/fsdp2.yaml
    """
    from hf_lmmixup.recipe import TRAININGS, find_recipe
    from hf_lmmixup.training import beside
    from hf_lmmixup.training import train as run

    with errors(resumes=True), progress_bar() as update:
        file = find_recipe(recipe, TRAININGS)
        method, config = _read(file, overrides)
        folder = Path(config["output_dir"])
        replaced = {key: config[key] for key in _pairs(overrides) if key != "output_dir"}
        trained = run(
            method,
            file,
            replaced,
            folder,
            on_step=lambda done, total: update(f"trl {method}", done, total),
        )
    say(f"Wrote {escape(str(trained.model))}; its log is {escape(str(beside(folder, '.log')))}.")


def _read(recipe: Path, overrides: list[str] | None) -> tuple[str, dict[str, Any]]:
    """The method and the keys of a recipe."""
    from hf_lmmixup.recipe import bundled_recipes
    from hf_lmmixup.strict_yaml import read_yaml

    config = read_yaml(recipe) | _pairs(overrides)
    if "mixup_weight" in config:
        script = bundled_recipes() / "sftmix.py"
        raise ValueError(f"{recipe} is a recipe of SFTMix, which `trl` cannot run: python {script} --config {recipe}")
    for key in ("model_name_or_path", "output_dir"):
        if not config.get(key):
            raise ValueError(f"{recipe} has no {key!r}. Is it a recipe of TRL's? `lmmixup run` reads those of runs.")
    return ("grpo" if "reward_funcs" in config or "num_generations" in config else "sft"), config


def _pairs(overrides: list[str] | None) -> dict[str, Any]:
    import yaml

    pairs = {}
    for text in overrides or []:
        if not re.match(r"\w+=", text):
            raise ValueError(f"--set {text!r} is not KEY=VALUE.")
        key, _, value = text.partition("=")
        try:
            pairs[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {text!r}: the value is not valid YAML. Put it in quotation marks.") from error
    return pairs
