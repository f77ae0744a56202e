"""Every recipe parses strictly, finds what it names, and trains two steps with a tiny model in place of its own."""

import json
import re
import runpy
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from trl_forks import failures, job, options, run_jobs

from hf_lmmixup.recipe import load_recipe
from hf_lmmixup.tiny_distiller import build_tiny_distiller


# TRL 1.16 sets the old name of the argument by default; gone when TRL passes `activation_checkpointing`.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")

RECIPES = REPOSITORY / "recipes"
RUNS = sorted(RECIPES.glob("*.yaml"))
LAUNCHES = sorted((RECIPES / "accelerate").glob("*.yaml"))
TRAININGS = [file for file in sorted(RECIPES.rglob("*.yaml")) if file not in RUNS + LAUNCHES]

# What a tiny model on a CPU needs otherwise; every other key stands as the recipe has it.
SMALL = {
    "use_cpu": "true",
    "bf16": "false",
    "dtype": "float32",
    "max_steps": 2,
    "gradient_accumulation_steps": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": "true",
}
SMALL_SFT = SMALL | {"per_device_train_batch_size": 2, "max_length": 400}
SMALL_GRPO = SMALL | {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 1,
    "max_completion_length": 8,
    "use_transformers_continuous_batching": "false",  # 15 seconds a step on a CPU
}


def method(file: Path) -> str:
    return "sft" if file.parent.name == "downstream" else file.stem.partition("_")[0]


def name(file: Path) -> str:
    return str(file.relative_to(RECIPES))


def parse(file: Path, *more: str) -> tuple:
    from trl.scripts import grpo, sft

    if method(file) == "sftmix":
        parser = runpy.run_path(str(RECIPES / "sftmix.py"))["make_parser"]()
    else:
        parser = {"sft": sft, "grpo": grpo}[method(file)].make_parser()
    # --use_cpu lets recipes for a GPU parse on a machine without one.
    arguments = ["--config", str(file), "--use_cpu", "true", *more]
    return parser.parse_args_and_config(arguments, fail_with_unknown_args=True)


@pytest.fixture(autouse=True)
def environment_of_recipes(monkeypatch):
    """TRL's parser sets the variables of `env:`; they go when the test ends."""
    for variable in ("HF_LMMIXUP_DATASTORE", "HF_LMMIXUP_MAX_PROMPT_TOKENS"):
        monkeypatch.setenv(variable, "")


def test_there_are_recipes():
    assert [name(file) for file in RUNS] == ["extractive.yaml", "quickstart.yaml", "training_free.yaml"]
    assert {name(file) for file in TRAININGS} >= {
        *(f"qwen2.5-1.5b/{stem}.yaml" for stem in ("sft", "sft_qlora", "grpo", "grpo_qlora", "grpo_normalized")),
        *(f"{folder}/{stem}.yaml" for folder in ("quickstart", "smollm2-360m") for stem in ("sft", "grpo")),
        *(f"downstream/{stem}.yaml" for stem in ("llama-3.1-8b_lora", "qwen2.5-1.5b_qlora", "tiny")),
    }
    assert {file.stem for file in LAUNCHES} >= {"fsdp2", "deepspeed_zero3", "multi_gpu"}


@pytest.mark.parametrize("file", RUNS, ids=name)
def test_run_recipe(file):
    recipe = load_recipe(file)
    for training in (recipe.distiller.cold_start, recipe.distiller.grpo):
        assert training is None or recipe.training_file(training).is_file()


@pytest.mark.parametrize("file", TRAININGS, ids=name)
def test_training_recipe_parses_strictly(file):
    script, training, model, _ = parse(file)
    assert model.model_name_or_path
    assert script.dataset_name
    assert training.output_dir
    assert getattr(training, "hub_token", None) is None
    paths = getattr(script, "reward_funcs", None) or []
    for path in paths:
        module, _, function = path.rpartition(".")
        assert callable(getattr(__import__(module, fromlist=[function]), function))
    if paths:
        assert len(training.reward_weights) == len(paths)
        assert training.reward_weights[:3] == [0.5, 0.4, 0.1]


def test_the_numbers_of_the_papers_stand_in_the_recipes():
    published = {
        # LM-Mixup, arXiv 2510.20449, code: cold start, GRPO, fine-tuning of the comparison
        "qwen2.5-1.5b/sft.yaml": {
            "learning_rate": 2e-5,
            "max_length": 2400,
            "warmup_steps": 0.05,
            "weight_decay": 0.01,
        },
        "qwen2.5-1.5b/grpo.yaml": {
            "num_generations": 4,
            "learning_rate": 1e-6,
            "beta": 0.01,
            "epsilon": 0.2,
            "epsilon_high": 0.3,
            "delta": 3.0,
            "temperature": 1.0,
            "max_completion_length": 2400,
            "weight_decay": 0.01,
            "generation_batch_size": 128 * 4,
        },
        "downstream/llama-3.1-8b_lora.yaml": {
            "learning_rate": 1e-4,
            "num_train_epochs": 5,
            "max_length": 2048,
            "warmup_steps": 0.03,
            "weight_decay": 0.0,
            "seed": 42,
        },
    }
    for file, wanted in published.items():
        _, training, model, _ = parse(RECIPES / file)
        assert {key: getattr(training, key) for key in wanted} == wanted, file
        if file.startswith("downstream"):
            assert (model.lora_r, model.lora_alpha, model.lora_dropout) == (64, 16, 0.1)
            assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 128
        if "grpo" in file:
            assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 64


@pytest.mark.parametrize("key", ["learning_rat", "max_prompt_length", "lora_rank"])
def test_misspelt_key_fails(tmp_path, key):
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump({"model_name_or_path": "x", "dataset_name": "y", key: 1.0}))
    with pytest.raises(ValueError, match=key):
        parse(file)


@pytest.mark.parametrize("file", LAUNCHES, ids=name)
def test_launch_parses_strictly(file, tmp_path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(file)).num_processes >= 2
    (tmp_path / "misspelt.yaml").write_text(file.read_text() + "num_proceses: 2\n")
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(tmp_path / "misspelt.yaml"))


@pytest.mark.parametrize("file", LAUNCHES, ids=name)
def test_launch_starts_as_many_processes_as_it_says(file, monkeypatch):
    """Accelerate 1.15 takes `distributed_type: MULTI_CPU` and `num_processes: 2`, and starts one process."""
    from accelerate.commands import launch

    started = []
    monkeypatch.setattr(launch, "simple_launcher", lambda arguments: started.append(1))
    for launcher in ("multi_gpu_launcher", "deepspeed_launcher"):
        monkeypatch.setattr(launch, launcher, lambda arguments: started.append(arguments.num_processes))
    parser = launch.launch_command_parser()
    launch.launch_command(parser.parse_args(["--config_file", str(file), "script.py"]))
    assert started == [yaml.safe_load(file.read_text())["num_processes"]] and started[0] >= 2


@pytest.mark.parametrize("file", [*RUNS, *TRAININGS, *LAUNCHES], ids=name)
def test_header_says_how_to_run_it_and_what_to_expect(file):
    header = "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    for word in ("Command:", "Hardware:", "Good run:", "Last run:"):
        assert word in header
    last = header.partition("Last run:")[2]
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", last) and re.search(r"\b(CPUs?|GPUs?|cores?|quickstart)\b", last), last
    for mentioned in re.findall(r"recipes/[\w./-]+\.(?:yaml|py)", header):
        assert (REPOSITORY / mentioned).is_file(), mentioned


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return build_tiny_distiller(tmp_path_factory.mktemp("tiny") / "model", ["Which tides are there? Ebb and flow."])


@pytest.fixture(scope="module")
def distilled(tmp_path_factory) -> Path:
    """A folder of the kind that a run leaves: plain prompts and completions."""
    folder = tmp_path_factory.mktemp("run") / "dataset"
    folder.mkdir()
    rows = [{"prompt": f"What is {n} plus one?", "completion": f" It is {n + 1}.", "score": 4} for n in range(8)]
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.mark.parametrize("folder", ["qwen2.5-1.5b", "smollm2-360m"])
def test_a_cold_start_learns_the_completions_and_where_they_end(folder, tiny, tmp_path, monkeypatch):
    import torch
    from datasets import load_dataset
    from trl import SFTTrainer

    torch.set_num_threads(1)
    monkeypatch.setenv("CI", "1")
    monkeypatch.chdir(REPOSITORY)
    output = ["--output_dir", str(tmp_path), "--bf16", "false", "--optim", "adamw_torch"]
    script, training, _, _ = parse(RECIPES / folder / "sft.yaml", *output)
    rows = load_dataset(script.dataset_name, script.dataset_config, split="train").select(range(24))
    trainer = SFTTrainer(str(tiny), training, train_dataset=rows)
    tokenizer, learnt = trainer.processing_class, []
    for row in trainer.train_dataset:
        assert len(row["input_ids"]) <= training.max_length
        for position, (token, label) in enumerate(zip(row["input_ids"], row["labels"], strict=True)):
            if label == -100:
                continue
            assert label == token
            if row["labels"][position - 1] == -100:
                learnt.append([])
            learnt[-1].append(token)
    assert training.packing and len(trainer.train_dataset) < 24
    for tokens in learnt:
        assert tokenizer.eos_token_id in tokens[-2:]
    texts = {tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in learnt}
    plain = {tokenizer.decode(tokenizer(row[0]["content"])["input_ids"]).strip() for row in rows["completion"]}
    assert texts == plain and len(plain) == 24


def test_every_recipe_trains_two_steps_with_a_tiny_model(tiny, distilled, tmp_path):
    jobs = []
    for file in TRAININGS:
        values = {**(SMALL_GRPO if method(file) == "grpo" else SMALL_SFT), "model_name_or_path": tiny}
        values["output_dir"] = tmp_path / name(file).replace("/", "-")
        if "8bit" in yaml.safe_load(file.read_text()).get("optim", ""):
            values["optim"] = "adamw_torch"
        if file.parent.name == "downstream" or method(file) == "sftmix":
            values["dataset_name"] = distilled
        if method(file) == "sftmix":
            values |= {"reference_model": tiny, "reference_epochs": 1}
        if name(file) == "quickstart/grpo.yaml":
            values["per_device_train_batch_size"] = 8  # its groups are of 8
        script = "recipes/sftmix.py" if method(file) == "sftmix" else method(file)
        arguments = ["--config", file, *options(**values)]
        jobs.append(job(script, arguments, tmp_path / f"{values['output_dir']}.log"))
    codes = run_jobs(*jobs)
    assert not any(codes), failures(codes, *jobs)
    for file, one in zip(TRAININGS, jobs, strict=True):
        log = Path(one["log"]).read_text()
        assert log.count("{'loss': '") == 2, file
        saved = Path(one["log"]).with_suffix("")
        adapted = yaml.safe_load(file.read_text()).get("use_peft", False)
        assert (saved / ("adapter_model.safetensors" if adapted else "model.safetensors")).is_file()
        if method(file) == "grpo":
            metrics = ["rewards/quality_reward/mean", "rewards/alignment_reward/mean"]
            if file.parent.name != "quickstart":
                metrics.append("monitor/length")
                assert "alignment_reward" in log.partition("─ Step 1 ─")[2]  # the table of samples
            for metric in metrics:
                assert f"'{metric}': '" in log, (file, metric)
