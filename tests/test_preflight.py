"""Mistakes in a training recipe are named before a model is loaded: by `check`, and by plain `trl` where it can be."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import typer
from conftest import REPOSITORY

from hf_lmmixup import preflight
from hf_lmmixup.commands import trainings
from hf_lmmixup.preflight import check, check_keys, check_rewards
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
        "empty": [{"prompt": [{"role": "user", "content": "x"}]}, {"prompt": None}],
    }.items():
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_text("\n".join(json.dumps(row) for row in changed))
    shutil.copytree(folder / "tiny", folder / "adapter")
    (folder / "adapter" / "config.json").rename(folder / "adapter" / "adapter_config.json")
    shutil.copytree(folder / "tiny", folder / "base")
    (folder / "base" / "chat_template.jinja").rename(folder / "chat.jinja")
    return folder


@pytest.fixture
def grpo(folder):
    return read_yaml(GRPO) | {"model_name_or_path": str(folder / "tiny"), "dataset_name": "mixture"}


def test_a_good_recipe_passes_and_says_what_it_found(grpo, folder):
    found = check("grpo", grpo)
    assert (found.rows, found.limit, found.warnings) == (180, 4096 - 2400, [])
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
        ({"max_completion_length": 5000}, r"limit is -904 .* Lower max_completion_length or drop"),
        ({"learning_rate": "fast"}, "learning_rate='fast' is not what `trl grpo` takes"),
        ({"bf16": "maybe"}, "bf16='maybe' is not what `trl grpo` takes"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type='cosin' is unknown. Did you mean 'cosine'"),
        ({"save_strategy": False}, r"save_strategy=False is unknown. .*'steps'.*, in quotation marks"),
        ({"reward_weights": ["a", 1, 1, 0]}, r"reward_weights=\['a', 1, 1, 0\] is not what"),
        ({"reward_weights": ["5e-1", 1, 1, 0]}, "holds the text '5e-1'. YAML's numbers have a point"),
        (
            {"steps_per_generation": 3, "per_device_train_batch_size": 2},
            "6 completions .* groups of num_generations=4",
        ),
        ({"generation_batch_size": 6, "steps_per_generation": None}, "6 completions are sampled"),
        ({"model_name_or_path": "adapter"}, "adapter' is an adapter, and `trl` trains whole models. Merge it"),
        ({"dataset_name": "empty", "dataset_config": None}, "Row 1 of the data has no prompt"),
        ({"vllm_max_model_length": 2500}, r"limit is 100 \(vllm_max_model_length"),
        ({"model_name_or_path": "models/none"}, "'models/none' is neither a model folder nor"),
        ({"dataset_name": "ada/nothing"}, "The data 'ada/nothing' cannot be loaded"),
        ({"dataset_name": None}, "names no data"),
        ({"dataset_name": "clash", "dataset_config": None}, "column 'completions', which clashes"),
        ({"dataset_name": "unnamed", "dataset_config": None}, r"no column `prompt`, only \['question'\]"),
    ],
)
def test_a_mistake_is_named(grpo, folder, changes, words):
    for key in ("dataset_name", "model_name_or_path"):
        if (folder / (changes.get(key) or "none")).is_dir():
            changes = changes | {key: str(folder / changes[key])}
    with pytest.raises(ValueError, match=words):
        check("grpo", grpo | changes)


def test_the_long_prompt_is_named_by_its_row(folder):
    config = {"model_name_or_path": str(folder / "tiny"), "dataset_name": str(folder / "good"), "max_length": 100}
    with pytest.raises(ValueError, match="prompt of row 5 of .* which 1 of 8 rows pass. Raise max_length"):
        check("sft", config)


@pytest.mark.parametrize(
    ("keys", "package"),
    [
        ({"report_to": "trackio"}, "trackio"),
        ({"report_to": ["tensorboard", "wandb"]}, "wandb"),
        ({"use_vllm": True}, "vllm"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"optim": "paged_adamw_8bit"}, "bitsandbytes"),
    ],
)
def test_a_package_that_is_missing_is_named(grpo, monkeypatch, keys, package):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None if name == package else "spec")
    with pytest.raises(ImportError, match=f"needs {package}: pip install {package}"):
        check("grpo", grpo | keys)


def test_completions_that_would_be_cut_are_told(folder):
    (folder / "cut").mkdir()
    rows = [{"prompt": "one two", "completion": "three " * (400 if n < 2 else 4)} for n in range(5)]
    turns = [{key: [{"role": "user", "content": text}] for key, text in row.items()} for row in rows]
    config = {"model_name_or_path": str(folder / "tiny"), "dataset_name": str(folder / "cut"), "max_length": 100}
    for given in (rows, turns):
        (folder / "cut" / "train.jsonl").write_text("\n".join(json.dumps(row) for row in given))
        assert check("sft", config).warnings == ["2 of 5 completions are cut off: max_length is 100 tokens."]
        assert check("sft", config | {"max_length": None}).warnings == []


def test_of_many_rows_the_longest_are_counted(folder):
    rows = [{"prompt": "word " * (9000 if n == 0 else 200)} for n in range(1500)]
    (folder / "many").mkdir()
    (folder / "many" / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ValueError, match="which at least 1,000 of 1,500 rows pass"):
        check(
            "sft", {"model_name_or_path": str(folder / "tiny"), "dataset_name": str(folder / "many"), "max_length": 50}
        )


def test_keys_that_decide_what_is_read_are_followed(folder):
    rows = [{"words": "one two three", "messages": [{"role": "user", "content": "x"}]}]
    (folder / "words").mkdir()
    (folder / "words" / "train.jsonl").write_text(json.dumps(rows[0]))
    config = {"model_name_or_path": str(folder / "base"), "dataset_name": str(folder / "words")}
    with pytest.raises(ValueError, match="chat template"):
        check("sft", config)
    told = [check("sft", config | {"chat_template_path": str(folder / name)}) for name in ("chat.jinja", "tiny")]
    assert told[0] == told[1] and told[0].longest > 1
    (folder / "words" / "train.jsonl").write_text(json.dumps({"words": "one two three"}))
    assert check("sft", config | {"dataset_text_field": "words", "max_length": None}).limit is None


def test_room_is_left_for_completions_of_the_usual_length(grpo):
    del grpo["max_completion_length"], grpo["vllm_max_model_length"], grpo["env"]
    assert check("grpo", grpo).limit == 4096 - 512


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


def test_outside_a_checkout_the_data_of_our_recipes_is_said_to_lie_in_one(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="A checkout has this folder: go there, or name another"):
        check("sft", {"model_name_or_path": str(folder / "tiny"), "dataset_name": "dataset_scripts/mixture"})


def test_the_command(folder, capsys):
    options = [f"model_name_or_path={folder / 'tiny'}", f"dataset_name={folder / 'good'}"]
    trainings.check(SFT, [*options, "max_length=4000"])
    said = capsys.readouterr().err
    assert "tiny.yaml is in order: 8 rows; the longest prompt has" in said and "limit 4,000" in said
    for file, overrides, words in (
        (SFT, [*options, "max_length"], "'max_length' is not KEY=VALUE"),
        (SFT, [*options, "run_name=a: b: c"], "the value is not valid YAML"),
        (REPOSITORY / "recipes" / "quickstart.yaml", None, "has no 'model_name_or_path'"),
        ("quickstart/sftmix", None, "sftmix.yaml is a recipe of SFTMix, which `trl` cannot run: python "),
        (SFT, [*options, "max_length=100"], "The prompt of row 5"),
    ):
        with pytest.raises(typer.Exit) as ended:
            trainings.check(file, overrides)
        assert ended.value.exit_code == 1 and words in capsys.readouterr().err
