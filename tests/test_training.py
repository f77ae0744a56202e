"""Trainings through TRL's command: configuration, progress, resume, failures, with a stand-in for `trl`."""

import json
import sys

import pytest
import yaml

from hf_lmmixup import training
from hf_lmmixup.training import copy_model, last_checkpoint, read_history, train


STAND_IN = """
import json, os, pathlib, sys, yaml
config = yaml.safe_load(open(sys.argv[3]))
if config.get("learning_rat"):
    print("Traceback (most recent call last):\\n  File x\\nValueError: Unknown key learning_rat")
    print("subprocess.CalledProcessError: Command trl returned non-zero exit status 1.")
    sys.exit(1)
for step in (1, 2):
    print(f" 50%|##  | {step}/2 [00:01<00:01]", end="\\r", file=sys.stderr, flush=True)
print("Map: 100%|##| 180/180 [00:00<00:00, 9 examples/s]", flush=True)
folder = pathlib.Path(config["output_dir"]) / "checkpoint-2"
folder.mkdir(parents=True, exist_ok=True)
log = [{"step": 2, "loss": 1.5, "threads": os.environ["OMP_NUM_THREADS"], "mine": os.environ["HF_LMMIXUP_DATASTORE"]}]
(folder / "trainer_state.json").write_text(json.dumps({"log_history": log + [{"epoch": 1}]}))
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    script = tmp_path / "trl.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(training, "trl_command", lambda: [sys.executable, str(script)])
    file = tmp_path / "sft.yaml"
    file.write_text("model_name_or_path: a\ndataset_config: sft\nsave_steps: 20\n")
    return file


def test_configuration_progress_and_history(recipe, tmp_path):
    steps = []
    overrides = {"model_name_or_path": "b", "dataset_config": None}
    environment = {"HF_LMMIXUP_DATASTORE": "here"}
    done = train(
        "sft",
        recipe,
        overrides,
        tmp_path / "out",
        environment=environment,
        on_step=lambda *step: steps.append(step),
    )
    config = yaml.safe_load(done.config.read_text())
    assert config == {
        "model_name_or_path": "b",
        "save_steps": 20,
        "output_dir": str(tmp_path / "out"),
        "save_strategy": "steps",
        "save_total_limit": 1,
    }
    assert steps[-1] == (2, 2)
    assert [entry["mine"] for entry in done.history] == ["here"]
    assert int(done.history[0]["threads"]) >= 1
    train("sft", recipe, overrides, tmp_path / "out", environment=environment)
    assert yaml.safe_load(done.config.read_text())["resume_from_checkpoint"].endswith("checkpoint-2")


def test_failure_names_the_cause_and_the_log(recipe, tmp_path):
    with pytest.raises(RuntimeError, match=r"ValueError: Unknown key learning_rat All of it: .*out\.log"):
        train("sft", recipe, {"learning_rat": 1}, tmp_path / "out", environment={"HF_LMMIXUP_DATASTORE": ""})


def test_unknown_method_is_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"'ppo'.*\['sft', 'grpo'\]"):
        train("ppo", recipe, {}, tmp_path / "out")


def test_last_checkpoint_is_the_newest_complete_one(tmp_path):
    for step, complete in ((9, True), (10, True), (20, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step}]}))
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    assert read_history(tmp_path) == [{"step": 10}]
    assert read_history(tmp_path / "nothing") == []


def test_copy_model_takes_named_files_only(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    target.mkdir()
    (source / "checkpoint-1").mkdir(parents=True)
    wanted = {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"}
    for name in wanted | {"training_args.bin", "optimizer.pt", ".env", "trainer_state.json"}:
        (source / name).write_text(name)
    (source / "secret.json").symlink_to(tmp_path / "elsewhere")
    copy_model(source, target)
    assert {path.name for path in target.iterdir()} == wanted
