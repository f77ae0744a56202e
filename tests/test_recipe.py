"""Recipes are parsed strictly: a misspelt key or a wrong type stops the run before it starts."""

import pytest

from hf_lmmixup.recipe import Recipe, bundled_recipes, find_recipe, load_recipe


def write(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    return tmp_path / "r.yaml"


def test_values_defaults_and_overrides(tmp_path):
    recipe = load_recipe(write(tmp_path, "name: x\nselect: {distilled_share: 1}\n"), limit=5, seed=None)
    assert (recipe.name, recipe.limit, recipe.seed, recipe.select.distilled_share) == ("x", 5, 0, 1.0)
    assert recipe.folder == tmp_path
    assert "output" not in recipe.settings()


BAD = [
    ("nam: x", r"unknown key 'nam'"),
    ("seed: 1", r"no 'name'"),
    ("name: x\ncluster: {max: 3}", r"unknown key 'max'.*max_size"),
    ("name: x\ncluster: 3", r"cluster must be a mapping"),
    ("name: x\nseed: '0'", r"seed is '0', but must be int"),
    ("name: x\nseed: true", r"seed is True"),
    ("name: x\nlimit: 2.5", r"limit is 2.5, but must be int or null"),
    ("name: 3", r"name is 3, but must be str"),
    ("- a", r"must hold a mapping"),
    ("name: [", r"not valid YAML"),
    ("name: !!python/object/apply:os.system ['true']", r"not valid YAML"),
    ("a: &a [1]\nname: *a", r"alias"),
    ("folder: /x\nname: x", r"folder"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_recipe_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path, text))


def test_huge_recipe_is_refused(tmp_path):
    with pytest.raises(ValueError, match="larger than"):
        load_recipe(write(tmp_path, "name: " + "x" * 1_000_001))


def test_find_recipe(tmp_path):
    assert find_recipe(write(tmp_path, "name: x")) == tmp_path / "r.yaml"
    assert find_recipe("quickstart") == bundled_recipes() / "quickstart.yaml"
    with pytest.raises(FileNotFoundError, match=r"quickstart\.yaml"):
        find_recipe("slowstart")


def test_training_file_is_relative_to_the_recipe(tmp_path):
    recipe = Recipe("x", folder=tmp_path)
    (tmp_path / "sft.yaml").touch()
    assert recipe.training_file("sft.yaml") == tmp_path / "sft.yaml"
    with pytest.raises(FileNotFoundError, match=r"grpo\.yaml"):
        recipe.training_file("grpo.yaml")
