"""Mistakes in a training recipe are named before a model is loaded: by `check`, and by plain `trl` where it can be."""

import json
import os
import subprocess
import sys

import pytest
import typer
from conftest import REPOSITORY

from hf_lmmixup.commands import trainings
from hf_lmmixup.preflight import check, check_keys, check_rewards
from hf_lmmixup.prompt_lengths import measure_prompts
from hf_lmmixup.recipe import read_yaml
from hf_lmmixup.tiny_distiller import build_tiny_distiller


# TRL 1.16 sets the old name of the argument by default; gone when TRL passes `activation_checkpointing`.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")

GRPO = REPOSITORY / "recipes" / "qwen2.5-1.5b" / "grpo.yaml"
SFT = REPOSITORY / "recipes" / "downstream" / "tiny.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, and data with one prompt that is much longer than the others."""
    folder = tmp_path_factory.mktemp("preflight")
    build_tiny_distiller(folder / "tiny", ["What is one plus one? It is two."])
    rows = [{"prompt": "word " * (900 if n == 5 else 9), "completion": "two", "sources": ["a"]} for n in range(8)]
    for name, changed in {
        "good": rows,
        "clash": [row | {"completions": "x"} for row in rows],
        "unnamed": [{"question": "x"}],
    }.items():
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_text("\n".join(json.dumps(row) for row in changed))
    return folder


@pytest.fixture
def grpo(folder):
    return read_yaml(GRPO) | {"model_name_or_path": str(folder / "tiny"), "dataset_name": "mixture"}


def test_a_good_recipe_passes_and_says_what_it_found(grpo, folder):
    found = check("grpo", grpo)
    assert (found.rows, found.limit, found.warnings) == (180, 4096 - 2400, [])
    assert found.longest == max(measure_prompts(grpo, at_least=1000).counts)
    assert "HF_LMMIXUP_DATASTORE" not in os.environ  # the variables of `env:` are gone again
    [warning] = check("grpo", grpo | {"env": {}}).warnings
    assert "quality_reward cannot judge quality" in warning
    twice = {"dataset_name": None, "datasets": [{"path": "mixture", "name": "grpo"}] * 2}
    assert check("grpo", grpo | twice).rows == 360
    sft = read_yaml(SFT) | {"model_name_or_path": str(folder / "tiny"), "dataset_name": str(folder / "good")}
    assert check("sft", sft | {"max_length": 4000}).limit == 4000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rat": 1.0}, "Unknown key 'learning_rat' for `trl grpo`. Did you mean 'learning_rate'"),
        ({"max_prompt_length": 512}, "Unknown key 'max_prompt_length'"),
        ({"hub_token": "hf_x"}, "hub_token would be stored in every checkpoint.*HF_TOKEN"),
        ({"reward_funcs": []}, "reward_funcs is empty"),
        ({"reward_funcs": "hf_lmmixup.rewards.format_reward"}, "reward_funcs is one text, .* and no list"),
        ({"reward_weights": [0.5, 0.5]}, r"reward_weights=\[0.5, 0.5\] does not match reward_funcs. Expected 4"),
        ({"reward_weights": 1.0}, "reward_weights=1.0 does not match"),
        ({"num_generations": 1}, "num_generations=1: .* Expected at least 2"),
        ({"max_completion_length": "abc"}, "max_completion_length='abc' is not a whole number"),
        ({"reward_funcs": ["accuracy"]}, "'accuracy'. Expected a dotted path or one of .*'accuracy_reward'"),
        ({"reward_funcs": ["hf_lmmixup.rewards.qualty_reward"]}, "no 'qualty_reward'. Did you mean 'quality_reward'"),
        ({"reward_funcs": ["hf_lmmixup.reward.quality_reward"]}, "hf_lmmixup.reward cannot be imported"),
        ({"env": {"HF_LMMIXUP_DATASTORE": "runs/no/datastore"}}, "HF_LMMIXUP_DATASTORE='runs/no/datastore' cannot be"),
        ({"env": {"HF_LMMIXUP_DATASTORE": "ada/nothing"}}, "HF_LMMIXUP_DATASTORE='ada/nothing' cannot be used"),
        ({"env": {"HF_LMMIXUP_DATASTOR": "bundled"}}, "Unknown variable .* Did you mean 'HF_LMMIXUP_DATASTORE'"),
        ({"env": {"HF_LMMIXUP_QUALITY_MODE": "upsteam"}}, "'upsteam' is unknown"),
        ({"env": {"HF_LMMIXUP_MAX_PROMPT_TOKENS": "2k"}}, "'2k' is not a number"),
        ({"env": {"HF_LMMIXUP_MAX_PROMPT_TOKENS": 100}}, "tokens; the limit is 100 .* which 180 of 180 rows pass"),
        ({"max_completion_length": 4000}, r"limit is 96 \(the model's positions"),
        ({"vllm_max_model_length": 2500}, r"limit is 100 \(vllm_max_model_length"),
        ({"model_name_or_path": "models/none"}, "'models/none' is neither a model folder nor"),
        ({"dataset_name": "ada/nothing"}, "The data 'ada/nothing' cannot be loaded"),
        ({"dataset_name": None}, "names no data"),
        ({"dataset_name": "clash", "dataset_config": None}, "column 'completions', which clashes"),
        ({"dataset_name": "unnamed", "dataset_config": None}, r"no column `prompt`, only \['question'\]"),
    ],
)
def test_a_mistake_is_named(grpo, folder, changes, words):
    if changes.get("dataset_name") in ("clash", "unnamed"):
        changes = changes | {"dataset_name": str(folder / changes["dataset_name"])}
    with pytest.raises(ValueError, match=words):
        check("grpo", grpo | changes)


def test_the_long_prompt_is_named_by_its_row(folder):
    config = {"model_name_or_path": str(folder / "tiny"), "dataset_name": str(folder / "good"), "max_length": 100}
    with pytest.raises(ValueError, match="prompt of row 5 of .* which 1 of 8 rows pass. Raise max_length"):
        check("sft", config)


def test_the_registered_name_is_not_for_plain_sft(folder):
    with pytest.raises(ValueError, match="`trl sft` does not know the name 'mixture'"):
        check("sft", {"model_name_or_path": str(folder / "tiny"), "dataset_name": "mixture", "dataset_config": "sft"})


def test_launch_keys_and_rewards_of_the_current_directory_are_fine(tmp_path, monkeypatch):
    check_keys("sft", {"accelerate_config": "x.yaml", "num_processes": 2, "env": {}, "learning_rate": 1})
    (tmp_path / "my_own_rewards.py").write_text("def short(completions, **columns): return [0.0]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    check_rewards(["my_own_rewards.short", "accuracy_reward"])


@pytest.mark.parametrize(
    ("variables", "name", "words"),
    [
        ({"HF_LMMIXUP_DATASTORE": "runs/no/datastore"}, "quality_reward", "'runs/no/datastore' cannot be used"),
        ({"HF_LMMIXUP_DATASTORE": "runs/none"}, "quality_reward", "'runs/none' cannot be used"),
        ({"HF_LMMIXUP_MIXUP_WEIGHTS": "{"}, "quality_reward", "HF_LMMIXUP_MIXUP_WEIGHTS is not valid JSON"),
        ({}, "qualty_reward", "no reward 'qualty_reward'. It offers .*'quality_reward'"),
    ],
)
def test_the_import_that_plain_trl_does_first_names_the_mistake(variables, name, words):
    code = f"import hf_lmmixup.rewards as rewards; getattr(rewards, {name!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | variables)
    assert ended.returncode == 1
    pytest.raises(ValueError, _raise, ended.stderr.splitlines()[-1]).match(words)


def _raise(text):
    raise ValueError(text)


def test_the_command(folder, capsys):
    options = [f"model_name_or_path={folder / 'tiny'}", f"dataset_name={folder / 'good'}"]
    trainings.check(SFT, [*options, "max_length=4000"])
    said = capsys.readouterr().err
    assert "tiny.yaml is in order: 8 rows; the longest prompt has" in said and "limit 4,000" in said
    for file, overrides, words in (
        (SFT, [*options, "max_length"], "'max_length' is not KEY=VALUE"),
        (REPOSITORY / "recipes" / "quickstart.yaml", None, "has no 'model_name_or_path'"),
        (SFT, [*options, "max_length=100"], "The prompt of row 5"),
    ):
        with pytest.raises(typer.Exit) as ended:
            trainings.check(file, overrides)
        assert ended.value.exit_code == 1 and words in capsys.readouterr().err
