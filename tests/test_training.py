"""Trainings through TRL's command: configuration, progress, failures, with a stand-in for `trl`."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from conftest import REPOSITORY

from hf_lmmixup import distiller, training, writers
from hf_lmmixup.checkpoints import last_checkpoint, own_checkpoint, read_history, training_mark
from hf_lmmixup.pipeline import run
from hf_lmmixup.preflight import Checked
from hf_lmmixup.recipe import DistillerRecipe, Recipe, load_recipe
from hf_lmmixup.training import copy_model, train, training_config


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
(folder / "training_args.bin").write_bytes(b"PK " + config["run_name"].encode() + b" ...")
log = [{"step": 2, "loss": 1.5, "threads": os.environ["OMP_NUM_THREADS"], "mine": os.environ["HF_LMMIXUP_DATASTORE"]}]
(folder / "trainer_state.json").write_text(json.dumps({"log_history": log + [{"epoch": 1}]}))
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    script = tmp_path / "trl.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(training, "trl_command", lambda: [sys.executable, str(script)])
    monkeypatch.setattr(training, "check", lambda *given: Checked(1, 1, None, ["mind the gap"]))
    file = tmp_path / "sft.yaml"
    file.write_text("model_name_or_path: a\ndataset_config: sft\nsave_steps: 20\n")
    return file


def test_configuration_progress_and_history(recipe, tmp_path, caplog):
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
    assert config.pop("run_name").partition("-")[0] == "out"
    assert [record.message for record in caplog.records] == ["sft.yaml: mind the gap"]
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


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("usage: trl sft [-h]\ntrl sft: error: argument --learning_rate: invalid float value: 'abc'", "invalid float"),
        ("Killed", "its log names no error"),  # what an earlier training wrote is not its cause
    ],
)
def test_the_cause_is_what_this_training_said(recipe, tmp_path, said, words):
    (tmp_path / "out.log").write_text("ValueError: of an earlier training\n")
    (tmp_path / "trl.py").write_text(f"import sys; print({said!r}); sys.exit(2)")
    with pytest.raises(RuntimeError, match=f"exit code 2: .*{words}"):
        train("sft", recipe, {}, tmp_path / "out")


def test_folders_whose_names_hold_dots_keep_their_files_apart(recipe, tmp_path):
    environment = {"HF_LMMIXUP_DATASTORE": "here"}
    for name in ("qwen2.5-1.5b-sft", "qwen2.5-1.5b-grpo"):
        train("sft", recipe, {}, tmp_path / name, environment=environment)
    written = {path.name for path in tmp_path.glob("qwen*") if path.is_file()}
    assert written == {
        f"qwen2.5-1.5b-{kind}.{suffix}" for kind in ("sft", "grpo") for suffix in ("yaml", "log", "lock")
    }


def test_null_stays_where_it_switches_a_default_off(recipe, tmp_path):
    recipe.write_text("max_length: null\naccelerate_config: null\nenv:\nsave_steps:\n")
    config = training_config("sft", recipe, {"beta": None, "dataset_config": None}, tmp_path / "out", {})
    assert (config["max_length"], config["beta"], config["save_steps"]) == (None, None, 50)
    assert not {"accelerate_config", "env", "dataset_config"} & set(config)


def test_trl_is_found_without_its_script(monkeypatch):
    """An environment that sees the packages of another one has no script of theirs beside its interpreter."""
    helped = subprocess.run([*training.trl_command(), "--help"], capture_output=True, text=True, check=True)
    assert helped.stdout.startswith("usage: trl") and "grpo" in helped.stdout
    monkeypatch.setattr(training.sys, "executable", "/elsewhere/bin/python")
    assert training.trl_command()[0] == "/elsewhere/bin/python"
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"hf-lmmixup\[train\]"):
        training.trl_command()


def test_unknown_method_is_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"'ppo'.*\['sft', 'grpo'\]"):
        train("ppo", recipe, {}, tmp_path / "out")


def test_a_training_goes_on_from_its_own_checkpoint_only(recipe, tmp_path):
    environment = {"HF_LMMIXUP_DATASTORE": "here"}
    train("sft", recipe, {"report_to": "none"}, tmp_path / "out", environment=environment)
    again = train("sft", recipe, {"report_to": "trackio"}, tmp_path / "out", environment=environment)
    config = yaml.safe_load(again.config.read_text())
    assert config["resume_from_checkpoint"].endswith("checkpoint-2") and config["report_to"] == "trackio"
    for other in ({"learning_rate": 1.0}, {"model_name_or_path": "c"}):
        with pytest.raises(ValueError, match="checkpoint-2 was not made by this training"):
            train("sft", recipe, other, tmp_path / "out", environment=environment)
    with pytest.raises(ValueError, match="was not made by this training"):
        train("sft", recipe, {}, tmp_path / "out", environment={"HF_LMMIXUP_DATASTORE": "there"})


@pytest.mark.parametrize("changed", ["data/train.jsonl", "model/model.safetensors", "datastore/scores.json"])
def test_other_rows_or_weights_in_the_same_place_make_another_training(recipe, tmp_path, changed):
    for name in ("data/train.jsonl", "model/model.safetensors", "datastore/scores.json", "model/training_args.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("before")
    overrides = {"model_name_or_path": str(tmp_path / "model"), "dataset_name": str(tmp_path / "data")}
    environment = {"HF_LMMIXUP_DATASTORE": str(tmp_path / "datastore")}
    train("sft", recipe, overrides, tmp_path / "out", environment=environment)
    (tmp_path / "model" / "training_args.bin").write_text("is no part of a model")
    train("sft", recipe, overrides, tmp_path / "out", environment=environment)
    (tmp_path / changed).write_text("after!")
    with pytest.raises(ValueError, match="its settings, model or data differ"):
        train("sft", recipe, overrides, tmp_path / "out", environment=environment)


def test_a_folder_has_one_training_at_a_time(recipe, tmp_path):
    (tmp_path / "trl.py").write_text("import time; print('started', flush=True); time.sleep(60)")
    first = f"""
import pathlib, sys
from hf_lmmixup import training
folder = pathlib.Path({str(tmp_path)!r})
training._run([sys.executable, str(folder / "trl.py")], folder / "out.log", {{}}, None)
"""
    with subprocess.Popen([sys.executable, "-c", first], start_new_session=True) as caller:
        while not (tmp_path / "out.log").is_file() or b"started" not in (tmp_path / "out.log").read_bytes():
            time.sleep(0.02)
        caller.kill()  # the training goes on without it
        caller.wait()
        with pytest.raises(ValueError, match="A training still writes to .*out, perhaps one whose caller was stopped"):
            train("sft", recipe, {}, tmp_path / "out")
        os.killpg(caller.pid, signal.SIGKILL)
    with (tmp_path / "out.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # free when the training is dead
    (tmp_path / "trl.py").write_text(STAND_IN)
    train("sft", recipe, {}, tmp_path / "out", environment={"HF_LMMIXUP_DATASTORE": ""})


def test_an_interrupted_training_ends_with_all_its_processes(tmp_path):
    """`trl` starts the process that trains and waits for it: ended alone, it would leave that one behind."""
    trl = tmp_path / "trl.py"
    trl.write_text(
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "print(' 50%|##  | 1/2 [00:01<00:01]', flush=True)\n"
        "child.wait()\n"
    )

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training._run([sys.executable, str(trl)], tmp_path / "out.log", {}, interrupt)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int((tmp_path / "child").read_text())).wait(timeout=20)


def write_checkpoint(folder, step, mark="mark", state=None):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "training_args.bin").write_bytes(b"PK" + mark.encode())
    if state is not False:
        (checkpoint / "trainer_state.json").write_text(state or json.dumps({"log_history": [{"step": step}]}))
    return checkpoint


def test_last_checkpoint_is_the_newest_complete_one(tmp_path):
    for step in (9, 10):
        write_checkpoint(tmp_path, step)
    write_checkpoint(tmp_path, 20, state=False)  # killed before the state file
    write_checkpoint(tmp_path, 30, state='{"log_hist')  # killed inside it
    write_checkpoint(tmp_path, "best")  # not the trainer's
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    assert own_checkpoint(tmp_path, "mark").name == "checkpoint-10"
    assert read_history(tmp_path) == [{"step": 10}]
    assert read_history(tmp_path / "nothing") == [] and own_checkpoint(tmp_path / "nothing", "mark") is None


@pytest.mark.parametrize("kind", ["other mark", "no arguments", "link", "link inside"])
def test_a_planted_checkpoint_is_refused(tmp_path, kind):
    write_checkpoint(tmp_path / "out", 2)
    planted = write_checkpoint(tmp_path / "elsewhere", 9, mark="other" if kind == "other mark" else "mark")
    if kind == "no arguments":
        (planted / "training_args.bin").unlink()
    if kind == "link inside":
        (planted / "optimizer.pt").symlink_to(tmp_path / "somewhere.pt")
    place = tmp_path / "out" / "checkpoint-9"
    place.symlink_to(planted) if kind == "link" else planted.rename(place)
    with pytest.raises(ValueError, match="checkpoint-9 was not made by this training.*Delete it"):
        own_checkpoint(tmp_path / "out", "mark")


def test_the_mark_tells_trainings_apart():
    mark = training_mark("sft", {"learning_rate": 1, "output_dir": "a", "report_to": "none"}, {})
    assert mark == training_mark("sft", {"learning_rate": 1, "output_dir": "b", "run_name": "x"}, {})
    others = [
        training_mark("grpo", {"learning_rate": 1}, {}),
        training_mark("sft", {"learning_rate": 2}, {}),
        training_mark("sft", {"learning_rate": 1}, {"HF_LMMIXUP_DATASTORE": "x"}),
    ]
    assert len({mark, *others}) == 4


def test_the_caller_s_variables_win_over_those_of_the_recipe(tmp_path):
    recipe = tmp_path / "grpo.yaml"
    recipe.write_text("env: {HF_LMMIXUP_DATASTORE: bundled, OTHER: kept}\n")
    config = training_config("grpo", recipe, {}, tmp_path / "out", {"HF_LMMIXUP_DATASTORE": "mine", "MORE": "x"})
    assert config["env"] == {"HF_LMMIXUP_DATASTORE": "mine", "OTHER": "kept"}
    recipe.write_text("resume_from_checkpoint: elsewhere/checkpoint-3\n")
    with pytest.raises(ValueError, match="from its own checkpoints"):
        training_config("grpo", recipe, {}, tmp_path / "out", {})


@pytest.mark.parametrize(
    ("vllm", "gpu", "chosen"),
    [
        (True, True, {"use_vllm": True, "use_transformers_continuous_batching": False, "bf16": True}),
        (True, False, {"use_transformers_continuous_batching": True, "bf16": False}),
        (False, True, {"use_transformers_continuous_batching": True, "bf16": False}),
    ],
)
def test_vllm_samples_where_it_can(tmp_path, monkeypatch, vllm, gpu, chosen):
    import torch

    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: "spec" if vllm else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    recipe = tmp_path / "grpo.yaml"
    recipe.write_text("use_transformers_continuous_batching: true\nbf16: false\n")
    config = training_config("grpo", recipe, {}, tmp_path / "out", {})
    assert {key: config[key] for key in chosen} == chosen


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


@pytest.mark.parametrize("native", [True, False])
def test_a_run_computes_in_bfloat16_where_the_processor_does(native, monkeypatch):
    monkeypatch.setattr(distiller, "has_fast_bfloat16", lambda: native)
    for name in ("sft", "grpo"):
        assert distiller._precision(REPOSITORY / f"recipes/quickstart/{name}.yaml") == {"bf16": native}
        assert distiller._precision(REPOSITORY / f"recipes/qwen2.5-1.5b/{name}.yaml") == {}


@pytest.mark.parametrize(
    ("cold_start", "error", "words"),
    [
        ("nowhere.yaml", FileNotFoundError, "names nowhere.yaml, but there is no file"),
        ("adapter.yaml", ValueError, "adapter.yaml trains an adapter, and GRPO starts from a whole model"),
        ("own.yaml", ValueError, "own.yaml names the data 'my_mixture', but a run trains on the bundled MIXTURE"),
    ],
)
def test_what_a_run_cannot_train_is_said_before_it_begins(tmp_path, cold_start, error, words):
    (tmp_path / "adapter.yaml").write_text("use_peft: true\n")
    (tmp_path / "own.yaml").write_text("dataset_name: my_mixture\n")
    (tmp_path / "grpo.yaml").write_text("max_steps: 1\n")
    options = {"cold_start": cold_start, "grpo": "grpo.yaml"}
    values = {"name": "mine", "output": str(tmp_path / "run"), "distiller": options}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(error, match=words):
        run(load_recipe(tmp_path / "mine.yaml"))
    assert not (tmp_path / "run").exists()


def test_a_distiller_that_the_run_does_not_train_is_not_called_untrained():
    recipe = Recipe("x", distiller=DistillerRecipe(model="models/mine"))
    assert distiller.Distiller(recipe, None, {}, None).models == [("as it is", "models/mine")]


SERVED = {"mode": "training-free", "model": "m", "endpoint": "http://127.0.0.1:9/v1"}


@pytest.mark.parametrize(("extra", "options"), [("train", {"cold_start": "quickstart/sft.yaml"}), ("rate", SERVED)])
def test_a_run_whose_extra_is_missing_does_not_begin(tmp_path, monkeypatch, extra, options):
    for module in (training.importlib.util, writers):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"hf-lmmixup\[{extra}\]"):
        run(Recipe("x", output=str(tmp_path / "run"), distiller=DistillerRecipe(**options)))
    assert not (tmp_path / "run").exists()
