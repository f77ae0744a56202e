"""Every recipe parses strictly, every reward path imports, and every run recipe finds the files it names."""

import runpy
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from hf_lmmixup.recipe import load_recipe


# TRL 1.16 sets the old name of the argument by default; gone when TRL passes `activation_checkpointing`.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")

RECIPES = REPOSITORY / "recipes"
RUNS = sorted(RECIPES.glob("*.yaml"))
TRAININGS = [
    file for file in sorted(RECIPES.rglob("*.yaml")) if file.parent != RECIPES and "accelerate" not in file.parts
]


def method(file: Path) -> str:
    return file.stem.partition("_")[0]


def parse(file: Path) -> tuple:
    from trl.scripts import grpo, sft

    if method(file) == "sftmix":
        parser = runpy.run_path(str(RECIPES / "sftmix.py"))["make_parser"]()
    else:
        parser = {"sft": sft, "grpo": grpo}[method(file)].make_parser()
    # --use_cpu lets recipes for a GPU parse on a machine without one.
    return parser.parse_args_and_config(["--config", str(file), "--use_cpu", "true"], fail_with_unknown_args=True)


def test_there_are_recipes():
    assert len(RUNS) >= 1
    assert len(TRAININGS) >= 2


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.name)
def test_run_recipe(file):
    recipe = load_recipe(file)
    for name in (recipe.distiller.cold_start, recipe.distiller.grpo):
        assert name is None or recipe.training_file(name).is_file()


@pytest.mark.parametrize("file", TRAININGS, ids=lambda file: str(file.relative_to(RECIPES)))
def test_training_recipe_parses_strictly(file):
    script, training, model, _ = parse(file)
    assert model.model_name_or_path
    assert script.dataset_name
    assert training.output_dir
    assert getattr(training, "hub_token", None) is None
    for path in getattr(script, "reward_funcs", None) or []:
        module, _, name = path.rpartition(".")
        assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_misspelt_key_fails(tmp_path):
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump({"model_name_or_path": "x", "dataset_name": "y", "learning_rat": 1.0}))
    with pytest.raises(ValueError, match="learning_rat"):
        parse(file)


@pytest.mark.parametrize("file", [*RUNS, *TRAININGS], ids=lambda file: str(file.relative_to(RECIPES)))
def test_header_says_how_to_run_it_and_what_to_expect(file):
    header = "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    for word in ("Command:", "Hardware:", "Good run:"):
        assert word in header
