"""`recipes/qlora.py` on a CPU: gradients survive an evaluation, only the adapter learns, merging loses nothing."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

from hf_lmmixup.four_bit import keep_layout, merge_adapter
from hf_lmmixup.hub import prepare
from hf_lmmixup.tiny_distiller import build_tiny_distiller


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True"),
]

RECIPE = REPOSITORY / "recipes" / "downstream" / "qwen2.5-1.5b_qlora.yaml"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("qlora_script", REPOSITORY / "recipes" / "qlora.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["qlora_script"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["qlora_script"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model and a distilled dataset."""
    folder = tmp_path_factory.mktemp("qlora")
    rows = [{"prompt": f"What is {n} plus one?", "completion": f"It is {n + 1}.", "score": 4} for n in range(12)]
    (folder / "dataset").mkdir()
    (folder / "dataset" / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    build_tiny_distiller(folder / "tiny", [row["completion"] for row in rows])
    return folder


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL reports no usage from there
    torch.set_num_threads(1)


def parse(script, folder, *more):
    overrides = {
        "model_name_or_path": folder / "tiny",
        "dataset_name": folder / "dataset",
        "output_dir": folder / "out",
        "use_cpu": "true",
        "bf16": "false",
        "dtype": "float32",
        "optim": "adamw_torch",
        "max_steps": 2,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 0,
        "learning_rate": 0.01,
        "lora_dropout": 0.0,
        "eval_rows": 4,
        "logging_steps": 1,
        "disable_tqdm": "true",
        "save_strategy": "no",
    }
    arguments = [text for name, value in overrides.items() for text in (f"--{name}", str(value))]
    return script.make_parser().parse_args_and_config(["--config", str(RECIPE), *arguments, *map(str, more)])


def logits(model):
    ids = torch.arange(40, 72).view(2, 16)
    model.eval()
    with torch.no_grad():
        return model(ids).logits.float()


def gradients(trainer):
    """Gradients of the adapter for one batch in training mode."""
    model = trainer.model
    model.train()
    ids = torch.arange(40, 72).view(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


def fresh_trainer(script, folder):
    torch.manual_seed(0)
    trainer = script.build_trainer(*parse(script, folder))
    torch.manual_seed(1)
    for name, value in trainer.model.named_parameters():
        if "lora_B" in name:
            value.data.normal_(0, 0.05)
    return trainer


def test_the_script_names_what_it_needs():
    text = (REPOSITORY / "recipes" / "qlora.py").read_text()
    header = text.partition("# /// script\n")[2].partition("# ///\n")[0]
    needs = tomllib.loads("\n".join(line.removeprefix("# ") for line in header.splitlines()))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert needs["requires-python"] == project["requires-python"]
    assert needs["dependencies"] == [f"{project['name']}[qlora]"] and "qlora" in project["optional-dependencies"]


def test_the_commands_of_the_script_parse(script, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    lines = re.findall(r"^    (\S.*)", script.__doc__, re.MULTILINE)
    launches = [line.partition(" recipes/qlora.py ") for line in lines]
    assert [launch.split()[:2] for launch, _, _ in launches] == [
        ["python"],
        ["uv", "run"],
        ["accelerate", "launch"],
        ["hf", "jobs"],
    ]
    for _, _, options in launches:
        words = [*shlex.split(options), "--use_cpu", "true", "--bf16", "false"]
        script.make_parser().parse_args_and_config(words)

    # A job is put together as the Hub would get it; its namespace would be asked for, and nobody is there to answer.
    hf, *words = shlex.split(lines[-1])
    words[words.index("run") + 1 : words.index("run") + 1] = ["--dry-run", "--namespace", "ada"]
    ended = subprocess.run(
        [sys.executable, str(Path(sys.executable).with_name(hf)), *words],
        env=os.environ
        | {
            "HF_TOKEN": "hf_x",
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "COLUMNS": "400",
        },
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    for word in shlex.split(launches[-1][2]):
        assert word in ended.stdout
    assert "hf_x" not in ended.stdout


def test_gradients_after_an_evaluation_are_those_without(script, folder, monkeypatch):
    from bitsandbytes.nn import Linear4bit
    from bitsandbytes.nn.modules import has_avx512bf16

    expected = gradients(fresh_trainer(script, folder))
    trainer = fresh_trainer(script, folder)
    for row in trainer.train_dataset:  # the end of the turn is learnt, the prompt is not
        tokens = list(zip(row["input_ids"], row["labels"], strict=True))
        assert (trainer.processing_class.eos_token_id,) * 2 in tokens[-2:] and tokens[0][1] == -100
    trainer.evaluate()
    found = gradients(trainer)
    assert expected.keys() == found.keys() and len(found) == 2 * keep_layout(trainer.model) == 2 * 7 * 2
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
        assert value.abs().max() > 0

    if has_avx512bf16():  # where the trap is, the same without the remedy goes wrong
        monkeypatch.setattr(script, "keep_layout", lambda model: None)
        trainer = fresh_trainer(script, folder)
        for layer in trainer.model.modules():
            if isinstance(layer, Linear4bit):
                layer.bias = None  # with a bias, bitsandbytes crashes instead
        trainer.evaluate()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch suspects it as well
            spoiled = gradients(trainer)
        name = next(iter(expected))
        assert (spoiled[name] - expected[name]).abs().max() > 0.1 * expected[name].abs().max()


def test_two_steps_then_reload_merge_and_push(script, folder, monkeypatch):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    arguments = parse(script, folder, "--merge_to", folder / "merged", "--push_to", "tester/tiny-distilled")
    trainers, start = [], {}

    def build(*given):
        trainer = original(*given)
        start.update({name: value.detach().clone() for name, value in trainer.model.state_dict().items()})
        trainers.append(trainer)
        return trainer

    original = script.build_trainer
    monkeypatch.setattr(script, "build_trainer", build)
    publications = []

    def prepare_only(path, repo_id, *, public, base_model):
        assert (public, base_model) == (False, None)  # private, and a local base has no name on the Hub
        publications.append(prepare("distiller", path, repo_id))
        return SimpleNamespace(url="https://hub/tester/tiny-distilled", private=True)

    monkeypatch.setattr(script, "push_distiller", prepare_only)
    script.main(*arguments)
    [publication] = publications
    assert {file.name for file in publication.files} >= {"README.md", "config.json", "model.safetensors"}
    assert "training_args.bin" not in {file.name for file in publication.files}

    losses = json.loads((folder / "out" / "evaluation.json").read_text())
    assert losses["after"]["eval_loss"] < losses["before"]["eval_loss"]
    saved = load_file(folder / "out" / "adapter_model.safetensors")
    assert len(saved) == 28 and all(".lora_" in name for name in saved)
    for name, value in trainers[0].model.state_dict().items():
        assert torch.equal(value, start[name]) != (".lora_" in name), name  # the adapter changed, nothing else

    quantization = script.get_quantization_config(arguments[2])
    base = AutoModelForCausalLM.from_pretrained(folder / "tiny", quantization_config=quantization, dtype=torch.float32)
    keep_layout(base)
    untrained = logits(base)
    reloaded = logits(PeftModel.from_pretrained(base, str(folder / "out")))
    merged = logits(AutoModelForCausalLM.from_pretrained(folder / "merged"))
    for name, value in trainers[0].model.named_parameters():
        if ".lora_" in name:
            value.data = value.data.float()  # TRL trains adapters of 4-bit models in bfloat16
    torch.testing.assert_close(reloaded, logits(trainers[0].model))
    torch.testing.assert_close(merged, reloaded, atol=1e-4, rtol=1e-4)
    assert (reloaded - untrained).abs().max() > 0.1
    rough = logits(AutoModelForCausalLM.from_pretrained(merge_adapter(folder / "out", folder / "tiny", folder / "r")))
    assert (rough - reloaded).abs().max() > 100 * (merged - reloaded).abs().max()  # what merging elsewhere loses


def test_defaults_are_those_of_qlora(script):
    _, _, model, _ = script.make_parser().parse_args_and_config(["--output_dir", "out", "--use_cpu", "true"])
    assert model.load_in_4bit and model.use_bnb_nested_quant and model.bnb_4bit_quant_type == "nf4"
    assert model.use_peft and model.lora_target_modules == "all-linear"


def test_mixture_by_its_name_has_held_out_rows(script, folder):
    arguments = parse(script, folder, "--dataset_name", "mixture", "--dataset_config", "sft")
    rows, held_out = script.read_splits(arguments[0], arguments[1], arguments[3])
    assert (len(rows), len(held_out)) == (180, 45)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--eval_rows", 12], "12 rows, so eval_rows=12 leaves none"),
        (["--push_to_hub", "true"], "push_to=OWNER/NAME"),
        (["--hub_token", "hf_x"], "HF_TOKEN"),
    ],
)
def test_mistakes_are_named_before_the_model_loads(script, folder, options, words, monkeypatch):
    monkeypatch.setattr(script, "SFTTrainer", None)
    with pytest.raises(ValueError, match=words):
        script.build_trainer(*parse(script, folder, *options))


def test_unknown_options_fail(script, folder):
    with pytest.raises(ValueError, match="lora_rank"):
        parse(script, folder, "--lora_rank", 8)
