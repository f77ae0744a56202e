"""Recipes are parsed strictly: a misspelt key or a wrong type stops the run before it starts."""

import dataclasses
import re

import pytest

from hf_lmmixup import bounds
from hf_lmmixup.recipe import TRAININGS, Recipe, bundled_recipes, find_recipe, load_recipe


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
    ("name: x\nselect: {min_score: 3}\nselect: {size: 9}", r"r.yaml:3 has the key 'select' again"),
    ("name: x\nselect:\n  size: 1\n  size: 2", r":4 has the key 'size' again"),
    ("name: x\ndecontaminate: {evaluations: [{a: 1, a: 2}]}", r"the key 'a' again"),
    ("name: x\n? [a]\n: 1", r"not valid YAML"),
    ("[" * 100_000, r"nested deeper than 50 levels"),
    ("\n".join(" " * n + "a:" for n in range(60)), r"nested deeper than 50 levels"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_recipe_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path, text))


OUT_OF_BOUNDS = [
    ("limit: 0", "limit=0 must be at least 1"),
    ("seed: -1\ndistiller: {cold_start: a.yaml}", "seed=-1 seeds no training. Expected 0 to"),
    ("rate: {threshold: 7}", "rate.threshold=7 is no score. Expected 0 to 6"),
    ("decontaminate: {min_overlap: 0}", "decontaminate.min_overlap=0.0 is not in (0, 1]"),
    ("decontaminate: {min_similarity: 1.5}", "decontaminate.min_similarity=1.5 is not in (0, 1]"),
    ("deduplicate: {max_similarity: 99}", "deduplicate.max_similarity=99.0 is no cosine. Expected -1 to 1"),
    ("cluster: {min_size: 0}", "cluster.min_size=0, max_size=5. Expected 1 <="),
    ("cluster: {max_size: 1}", "cluster.min_size=2, max_size=1. Expected 1 <="),
    ("cluster: {mean_size: 9}", "cluster.mean_size=9.0 lies outside of [2, 5]"),
    ("cluster: {mean_size: .nan}", "cluster.mean_size=nan lies outside of [2, 5]"),
    ("cluster: {std_size: -1}", "cluster.std_size=-1.0 is negative"),
    ("cluster: {std_size: .nan}", "cluster.std_size=nan is negative or no number"),
    ("cluster: {min_similarity: 2}", "cluster.min_similarity=2.0 is no cosine"),
    ("cluster: {singletons: dropp}", "Unknown cluster.singletons='dropp'. Expected one of ['keep', 'edit', 'drop']"),
    ("distiller: {batch_size: 0}", "distiller.batch_size=0 must be at least 1"),
    ("distiller: {max_new_tokens: 0}", "distiller.max_new_tokens=0 must be at least 1"),
    ("distiller: {temperature: 0}", "distiller.temperature=0.0 must be above 0"),
    ("distiller: {temperature: -1, engine: vllm}", "distiller.temperature=-1.0 is negative"),
    ("distiller: {no_repeat_ngram_size: -1}", "distiller.no_repeat_ngram_size=-1 is negative"),
    ("distiller: {concurrency: 0}", "distiller.concurrency=0 must be at least 1"),
    ("distiller: {max_prompt_tokens: 0}", "distiller.max_prompt_tokens=0 must be at least 1"),
    ("distiller: {prompt_price: -1}", "distiller.prompt_price=-1.0 is negative"),
    ("distiller: {completion_price: .inf}", "distiller.completion_price=inf is negative or no number"),
    ("distiller: {reading_steps: -1}", "distiller.reading_steps=-1 is negative"),
    ("distiller: {attempts: 0}", "distiller.attempts=0 must be at least 1"),
    ("distiller: {held_out: -1}", "distiller.held_out=-1 is negative"),
    ("faithfulness: {max_novelty: -0.1}", "faithfulness.max_novelty=-0.1 must lie between 0 and 1"),
    ("faithfulness: {min_coverage: 2}", "faithfulness.min_coverage=2.0 must lie between 0 and 1"),
    ("select: {min_score: -1}", "select.min_score=-1 is no score. Expected 0 to 6"),
    ("select: {fallback_share: 2}", "select.fallback_share=2.0 must lie between 0 and 1"),
    ("select: {fallback_share: -1}", "select.fallback_share=-1.0 must lie between 0 and 1"),
    ("select: {size: -1}", "select.size=-1 is negative or no number. Expected 0 or more"),
    ("select: {distilled_share: 50}", "select.distilled_share=50.0 is not a share. Expected 0 to 1"),
]


@pytest.mark.parametrize(("text", "message"), OUT_OF_BOUNDS)
def test_number_out_of_bounds_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(write(tmp_path, f"name: x\n{text}\n"))


EDGES = [
    "limit: 1",
    "seed: -1",
    "seed: 4294967295\ndistiller: {grpo: a.yaml}",
    "rate: {threshold: 6}",
    "decontaminate: {min_overlap: 1, min_similarity: null}",
    "deduplicate: {max_similarity: null}",
    "cluster: {min_size: 1, max_size: 1, mean_size: 1, std_size: 0, min_similarity: -1}",
    "distiller: {temperature: 0, engine: vllm, reading_steps: 0, held_out: 0, prompt_price: 0}",
    "distiller: {temperature: 0, endpoint: 'http://127.0.0.1:1/v1'}",
    "distiller: {temperature: 0, mode: extractive}",
    "faithfulness: {max_novelty: 0, min_coverage: 1}",
    "select: {min_score: 0, fallback_share: 0, size: 0, distilled_share: 1}",
]


@pytest.mark.parametrize("text", EDGES)
def test_numbers_at_their_bounds_are_taken(tmp_path, text):
    load_recipe(write(tmp_path, f"name: x\n{text}\n"))


def test_every_number_of_a_recipe_has_bounds():
    unbounded = set()
    for section in (one for one in dataclasses.fields(Recipe) if dataclasses.is_dataclass(one.type)):
        for option in dataclasses.fields(section.type):
            kinds = getattr(option.type, "__args__", (option.type,))
            if {int, float} & set(kinds) and option.name not in getattr(bounds, section.name.upper()):
                unbounded.add(f"{section.name}.{option.name}")
    # These three are compared with each other, by `check_sizes`.
    assert unbounded == {"cluster.min_size", "cluster.max_size", "cluster.mean_size"}


def test_huge_recipe_is_refused(tmp_path):
    with pytest.raises(ValueError, match="larger than"):
        load_recipe(write(tmp_path, "name: " + "x" * 1_000_001))


def test_find_recipe(tmp_path):
    assert find_recipe(write(tmp_path, "name: x")) == tmp_path / "r.yaml"
    assert find_recipe("quickstart") == bundled_recipes() / "quickstart.yaml"
    assert load_recipe("training_free").name == "training-free"
    with pytest.raises(FileNotFoundError, match=r": extractive, quickstart, training_free\.$"):
        find_recipe("slowstart")
    with pytest.raises(FileNotFoundError, match=r": downstream/.*, quickstart/grpo, ") as told:
        find_recipe("slowstart", TRAININGS)
    listed = str(told.value).split(": ")[1].removesuffix(".").split(", ")
    assert all(find_recipe(name).parent.parent == bundled_recipes() for name in listed)
    assert not any("accelerate" in name or "sftmix" in name for name in listed)


def test_training_file_is_relative_to_the_recipe_or_one_of_ours(tmp_path):
    recipe = Recipe("x", folder=tmp_path)
    (tmp_path / "sft.yaml").touch()
    assert recipe.training_file("sft.yaml") == tmp_path / "sft.yaml"
    assert recipe.training_file("quickstart/sft.yaml") == bundled_recipes() / "quickstart/sft.yaml"
    with pytest.raises(FileNotFoundError, match=r"grpo\.yaml"):
        recipe.training_file("grpo.yaml")
