"""Trainings with TRL itself: killed and gone on with, without a token in a file, and by two processes as by one."""

import json
import os
import subprocess

import pytest
import yaml
from conftest import REPOSITORY
from datasets import load_dataset
from safetensors.torch import load_file
from test_recipes import tiny  # noqa: F401 -- a fixture
from trl_forks import failures, job, job_of, options, run_jobs

from hf_lmmixup import training
from hf_lmmixup.bundled import read_mini
from hf_lmmixup.checkpoints import last_checkpoint
from hf_lmmixup.prompts import distillation_messages
from hf_lmmixup.training import train


# TRL 1.16 sets the old name of the argument by default; gone when TRL passes `activation_checkpointing`.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")

TOKEN = "hf_" + "SecretOfTheTest" * 2

REWARDS = [f"hf_lmmixup.rewards.{name}_reward" for name in ("quality", "alignment", "format")]

SMALL = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_steps": 2,
    "max_steps": 6,
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 3,
}
KINDS = {
    "sft": {"per_device_train_batch_size": 4, "learning_rate": 1e-3},
    "grpo": {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 1e-3,
        "reward_funcs": REWARDS,
        "reward_weights": [0.5, 0.4, 0.1],
        "env": {"HF_LMMIXUP_DATASTORE": "bundled"},
    },
}
MEASURED = {
    "sft": ("loss", "grad_norm"),
    "grpo": ("entropy", "rewards/quality_reward/mean", "completions/mean_length"),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A folder of short rows for both methods."""
    folder = tmp_path_factory.mktemp("rows")
    cluster = read_mini("qa")[0]
    sources = [weak["text"] for weak in cluster["weak"]]
    row = {"task_type": "qa", "sources": sources, "reference": cluster["target"]}
    prompt = distillation_messages(sources, "qa")
    completions = [[{"role": "assistant", "content": f"Tide {n} comes " + "and goes " * (n % 5)}] for n in range(32)]
    for kind, more in {"sft": [{"completion": text} for text in completions], "grpo": [{}] * 32}.items():
        (folder / kind).mkdir()
        text = "\n".join(json.dumps({"prompt": prompt, **row, **one}) for one in more)
        (folder / kind / "train.jsonl").write_text(text)
    return folder


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_killed_training_goes_on_with_the_same_curve(method, rows, tiny, tmp_path, monkeypatch):  # noqa: F811
    kill = {"at": None}

    def fork(command, log, environment, on_step):
        return run_jobs(job_of(command, log, environment | {"HF_TOKEN": TOKEN}, kill_at=kill["at"]))[0]

    monkeypatch.setattr(training, "_run", fork)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SMALL | KINDS[method]))
    data = {"model_name_or_path": str(tiny), "dataset_name": str(rows / method)}

    whole = train(method, recipe, data, tmp_path / "whole")
    kill["at"] = 5
    with pytest.raises(RuntimeError, match="exit code -9"):
        train(method, recipe, data, tmp_path / "killed")
    assert last_checkpoint(tmp_path / "killed").name == "checkpoint-4"
    kill["at"] = None
    resumed = train(method, recipe, data, tmp_path / "killed")

    curves = [
        [[entry[name] for name in MEASURED[method]] for entry in one.history if MEASURED[method][0] in entry]
        for one in (whole, resumed)
    ]
    assert len(curves[0]) == 6 and len({tuple(step) for step in curves[0]}) == 6
    for before, after in zip(*curves, strict=True):
        assert after == pytest.approx(before, rel=1e-4)
    expected, found = (load_file(one.model / "model.safetensors") for one in (whole, resumed))
    for name, value in expected.items():
        assert (value - found[name]).abs().max() < 1e-4, name

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


def test_a_token_given_as_a_key_would_be_stored():
    """What `preflight` refuses, and why."""
    import io

    import torch
    from trl import SFTConfig

    stored = io.BytesIO()
    torch.save(SFTConfig(output_dir="out", use_cpu=True, bf16=False, hub_token=TOKEN), stored)
    assert TOKEN.encode() in stored.getvalue()


def test_two_processes_train_as_one(rows, tiny, tmp_path):  # noqa: F811
    jobs = []
    for processes in (1, 2):
        for method, script in (("sft", "sft"), ("grpo", "tests/scripted_grpo.py")):
            out = tmp_path / f"{method}-{processes}"
            values = {**SMALL, **KINDS[method], "max_steps": 2, "save_strategy": "no", "output_dir": out}
            values |= {"model_name_or_path": tiny, "dataset_name": rows / method, "optim": "sgd", "learning_rate": 0.5}
            environment = values.pop("env", {})
            if method == "grpo":
                values |= {"num_generations": 8, "log_completions": True, "max_completion_length": 400}
            values["per_device_train_batch_size"] = 8 // processes
            jobs.append(job(script, options(**values), f"{out}.log", environment, processes=processes))
    codes = run_jobs(*jobs)
    assert not any(codes), failures(codes, *jobs)

    start = load_file(tiny / "model.safetensors")
    for method in ("sft", "grpo"):
        one, two = (load_file(tmp_path / f"{method}-{processes}" / "model.safetensors") for processes in (1, 2))
        for name, value in one.items():
            assert (value - two[name]).abs().max() < 1e-5, (method, name)
        assert max((value - start[name]).abs().max() for name, value in one.items()) > 1e-3

    # Each process judged its share of the group, once a step, and the group has the same rewards.
    names = [[reward, 8] for _ in range(2) for reward in ("quality", "alignment", "format")]
    assert json.loads((tmp_path / "grpo-1" / "calls-0.json").read_text()) == names
    for process in (0, 1):
        calls = json.loads((tmp_path / "grpo-2" / f"calls-{process}.json").read_text())
        assert calls == [[reward, 4] for reward, _ in names]
    columns = [f"{name}_reward" for name in ("quality", "alignment", "format")] + ["completion", "advantage"]
    one, two = (
        load_dataset("parquet", data_files=str(tmp_path / f"grpo-{n}" / "completions" / "*.parquet"), split="train")
        for n in (1, 2)
    )
    assert len(one) == len(two) == 16 and set(columns) <= set(one.column_names)
    for name in columns[:3]:
        assert one[name][:] == two[name][:] and len(set(one[name])) > 1, name
    assert one["completion"][:] == two["completion"][:]
    assert two["advantage"][:] == pytest.approx(one["advantage"][:], abs=1e-4)


def test_two_processes_train_merge_and_speak_once_in_the_qlora_script(rows, tiny, tmp_path):  # noqa: F811
    values = {**SMALL, **KINDS["sft"], "max_steps": 2, "save_strategy": "no", "eval_rows": 4, "dtype": "float32"}
    values |= {"model_name_or_path": tiny, "dataset_name": rows / "sft", "output_dir": tmp_path / "out"}
    values |= {"merge_to": tmp_path / "merged"}
    one = job("recipes/qlora.py", options(**values), tmp_path / "log", processes=2)
    codes = run_jobs(one)
    assert not any(codes), failures(codes, one)
    log = (tmp_path / "log").read_text()
    for words in ("Loss on held-out rows", "Adapter saved to", "Merged model saved to"):
        assert log.count(words) == 1, words
    assert "'epoch': '0.5'" in log  # two of the four steps that two processes with 4 rows each take for 28
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_processes_cpu", "fsdp2"])
def test_the_launcher_starts_two_processes_from_our_file(name, rows, tiny, tmp_path):  # noqa: F811
    """The same by `trl` itself: three processes import everything, which takes most of a minute."""
    launch = tmp_path / "launch.yaml"
    file = REPOSITORY / "recipes" / "accelerate" / f"{name}.yaml"
    on_a_cpu = {"num_processes": 2, "use_cpu": True, "mixed_precision": "no", "main_process_port": 0}
    launch.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | on_a_cpu))
    values = {**SMALL, **KINDS["sft"], "max_steps": 2, "save_strategy": "no", "output_dir": tmp_path / "out"}
    values |= {"model_name_or_path": tiny, "dataset_name": rows / "sft", "accelerate_config": launch}
    command = [*training.trl_command(), "sft", *options(**values)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CI": "1"}, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert ended.stdout.count("'loss'") == 2  # the first process alone speaks
    assert "'epoch': '0.5'" in ended.stdout  # two steps of two processes with 4 rows each, of 32
