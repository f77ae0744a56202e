"""The script `recipes/sftmix.py` and its recipes: strict, and one file does reference run, mosaics and mixing."""

import importlib.util
import re
import sys

import pytest
import torch
import yaml
from conftest import REPOSITORY
from datasets import Dataset

from hf_lmmixup.loading import load_rows
from hf_lmmixup.sftmix import load_confidence
from hf_lmmixup.tiny_distiller import build_tiny_distiller


RECIPES = sorted((REPOSITORY / "recipes").rglob("sftmix*.yaml"))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("sftmix_script", REPOSITORY / "recipes" / "sftmix.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sftmix_script"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["sftmix_script"]


def watched(script, monkeypatch):
    """The trainers that the script will make."""
    made = []

    class Watched(script.SFTMixTrainer):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            made.append(self)

    monkeypatch.setattr(script, "SFTMixTrainer", Watched)
    return made


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.parent.name)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_recipes_parse_strictly(script, recipe):
    arguments, training, model, _ = script.make_parser().parse_args_and_config(
        ["--config", str(recipe), "--use_cpu", "true"]
    )
    assert training.mixup_weight == 0.2 and training.mixup_alpha == 0.5
    assert arguments.dataset_name and model.model_name_or_path and training.output_dir


def test_there_are_two_recipes():
    assert [recipe.parent.name for recipe in RECIPES] == ["quickstart", "qwen2.5-1.5b"]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_unknown_keys_and_options_fail(script, tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"mixup_wait": 0.3}))
    with pytest.raises(ValueError, match="mixup_wait"):
        script.make_parser().parse_args_and_config(["--config", str(tmp_path / "r.yaml"), "--use_cpu", "true"])
    with pytest.raises(ValueError, match="mixup_wait"):
        script.make_parser().parse_args_and_config(["--mixup_wait", "0.3", "--use_cpu", "true"])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_one_recipe_distilled_rows_mosaics_and_mixing(script, finished_run, tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL reports no usage from there
    torch.set_num_threads(1)
    rows = load_rows(finished_run / "dataset").dataset  # what a run distilled, and what it kept
    model = build_tiny_distiller(tmp_path / "tiny", rows["completion"][:])
    weaker = build_tiny_distiller(tmp_path / "weaker", rows["completion"][:2])  # with another vocabulary
    overrides = {
        "model_name_or_path": str(model),
        "reference_model": str(weaker),
        "dataset_name": str(finished_run / "dataset"),
        "output_dir": str(tmp_path / "out"),
        "reference_epochs": "1",
        "num_train_epochs": "1",
        "per_device_train_batch_size": "4",
        "logging_steps": "1",
        "disable_tqdm": "true",
    }
    arguments = ["--config", str(REPOSITORY / "recipes" / "quickstart" / "sftmix.yaml")]
    for name, value in overrides.items():
        arguments += [f"--{name}", value]
    trainers = watched(script, monkeypatch)
    for seed in ("0", "1"):  # the second run finds the table of the first
        script.main(*script.make_parser().parse_args_and_config([*arguments, "--seed", seed]))
        table = load_confidence(tmp_path / "out" / "confidence.parquet")
        assert sorted(table["id"]) == sorted(rows["id"])
        assert (tmp_path / "out" / "model.safetensors").is_file()
        logs = [row for row in trainers[-1].state.log_history if "mixup_loss" in row]
        assert logs and any(row["mixup_share"] > 0 for row in logs)  # pairs were mixed,
        examples = list(trainers[-1].train_dataset)
        assert len(examples) < len(rows)  # they were pairs of mosaics,
        assert all(row["confidence"] is not None for row in examples)  # and each had the confidence of its rows
    assert (tmp_path / "out" / "confidence.svg").is_file()
    assert len(list((tmp_path / "out" / "reference").glob("checkpoint-*"))) == 1  # the reference ran once

    missing = [*arguments, "--confidence", str(tmp_path / "none.parquet")]
    with pytest.raises(FileNotFoundError, match="none.parquet"):
        script.main(*script.make_parser().parse_args_and_config(missing))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_a_stream_is_read_while_the_trainer_runs(script, tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")
    torch.set_num_threads(1)
    rows = [
        {"prompt": f"What is {i} plus one?", "completion": f"It is {i + 1}.", "confidence": -1.0 - i % 5}
        for i in range(32)
    ]
    model = build_tiny_distiller(tmp_path / "tiny", [row["completion"] for row in rows])
    (tmp_path / "rows").mkdir()
    # Not Parquet, of which `datasets` waits five seconds after each look into a shuffled stream.
    Dataset.from_list(rows).to_json(str(tmp_path / "rows" / "train.jsonl"))
    arguments = ["--config", str(REPOSITORY / "recipes" / "quickstart" / "sftmix.yaml"), "--dataset_streaming", "true"]
    arguments += ["--dataset_name", str(tmp_path / "rows"), "--model_name_or_path", str(model), "--max_steps", "2"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--logging_steps", "1", "--per_device_train_batch_size", "4"]
    trainers = watched(script, monkeypatch)
    for more in (["--mixup_weight", "0"], ["--confidence_threshold", "-3"]):  # mosaics alone, and mixed ones
        script.main(*script.make_parser().parse_args_and_config([*arguments, *more]))
        assert trainers[-1].state.global_step == 2
    assert any(row.get("mixup_share", 0) > 0 for row in trainers[-1].state.log_history)
    assert not list((tmp_path / "out").glob("confidence*"))  # no reference run
    # Rows of Alpaca's columns are pairs too, whatever else they hold.
    alpaca = [{"instruction": row["prompt"], "output": row["completion"], "input": "", "text": "x"} for row in rows]
    (tmp_path / "alpaca").mkdir()
    Dataset.from_list(alpaca).to_json(str(tmp_path / "alpaca" / "train.jsonl"))
    plain = ["--dataset_name", str(tmp_path / "alpaca"), "--mixup_weight", "0", "--mosaic_items", "1"]
    script.main(*script.make_parser().parse_args_and_config([*arguments, *plain]))
    seen = next(iter(trainers[-1].train_dataset))
    assert seen["labels"][0] == -100 and "plus one" in trainers[-1].processing_class.decode(seen["input_ids"])
    with pytest.raises(ValueError, match="which these rows lack"):
        script.main(*script.make_parser().parse_args_and_config([*arguments, "--confidence_column", "other"]))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_a_token_is_refused_before_anything_is_loaded(script, tmp_path):
    options = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--hub_token", "hf_x"]
    with pytest.raises(ValueError, match="stored in every checkpoint. Remove it and set HF_TOKEN"):
        script.main(*script.make_parser().parse_args_and_config(options))
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_the_reference_run_has_the_precision_of_the_training(script, tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")
    torch.set_num_threads(1)
    rows = Dataset.from_list([{"prompt": f"What is {i} plus one?", "completion": f"It is {i + 1}."} for i in range(8)])
    rows.to_json(str(tmp_path / "rows.jsonl"))
    model = build_tiny_distiller(tmp_path / "tiny", rows["completion"][:])
    arguments = ["--config", str(REPOSITORY / "recipes" / "quickstart" / "sftmix.yaml"), "--bf16", "true"]
    arguments += ["--dataset_name", str(tmp_path / "rows.jsonl"), "--model_name_or_path", str(model)]
    arguments += ["--output_dir", str(tmp_path / "out"), "--per_device_train_batch_size", "4", "--mosaic_items", "1"]
    trainers = watched(script, monkeypatch)
    script.main(*script.make_parser().parse_args_and_config([*arguments, "--max_steps", "1"]))
    assert trainers[-1].accelerator.mixed_precision == "bf16"
    assert (tmp_path / "out" / "confidence.parquet").is_file()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_an_evaluation_is_refused_before_anything_is_loaded(script, tmp_path):
    options = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--eval_strategy", "steps"]
    options += ["--eval_steps", "5"]
    with pytest.raises(ValueError, match="eval_strategy='steps': this script trains and evaluates nothing"):
        script.main(*script.make_parser().parse_args_and_config(options))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_data_must_be_named(script, tmp_path):
    arguments, _, _, mixture = script.make_parser().parse_args_and_config(
        ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    )
    with pytest.raises(ValueError, match="Name the data"):
        script.read_rows(arguments, mixture)
    with pytest.raises(ValueError, match="Name the data: a stream is read"):
        script.stream_rows(arguments, None)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL reports no usage from there
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "sftmix.md").read_text(), re.DOTALL)
    exec(compile(code, "docs/sftmix.md", "exec"), {})
    assert len(load_confidence(tmp_path / "reference" / "confidence.parquet")) == 16
    assert (tmp_path / "mixed").is_dir()
