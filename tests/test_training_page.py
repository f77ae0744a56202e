"""`docs/training.md`: its commands run, except that the tiny model is built without reading; the others parse."""

import re
import shlex

import pytest
from conftest import REPOSITORY
from test_recipes import environment_of_recipes  # noqa: F401 -- a fixture
from trl_forks import failures, job, job_of, run_jobs
from typer.testing import CliRunner

from hf_lmmixup import training
from hf_lmmixup.cli import app
from hf_lmmixup.distiller import build_mini_distiller


# TRL 1.16 sets the old name of the argument by default; gone when TRL passes `activation_checkpointing`.
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")

PAGE = (REPOSITORY / "docs" / "training.md").read_text()


def commands(language):
    return [line for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_the_commands_run(tmp_path, monkeypatch):
    for name in ("recipes", "dataset_scripts", "hf_lmmixup"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)

    def fork(command, log, environment, on_step):
        return run_jobs(job_of(command, log, environment))[0]

    monkeypatch.setattr(training, "_run", fork)
    lines = commands("bash")
    assert len(lines) == 4
    for line in lines:
        program, *arguments = shlex.split(line)
        if line == "lmmixup tiny models/tiny-distiller":
            build_mini_distiller("models/tiny-distiller", reading_steps=0)
        elif program == "lmmixup":
            ended = CliRunner().invoke(app, ["--verbose", *arguments])
            assert ended.exit_code == 0, ended.output
        else:
            one = job(arguments[0], arguments[1:], tmp_path / "log", folder=tmp_path)
            codes = run_jobs(one)
            assert (program, codes) == ("python", [0]), failures(codes, one)
    for folder in ("tiny-distiller-sft", "tiny-merged"):
        assert (tmp_path / "models" / folder / "model.safetensors").is_file()
    assert (tmp_path / "models" / "tiny-qlora" / "adapter_model.safetensors").is_file()


def test_the_commands_for_two_machines_parse(monkeypatch):
    from trl.scripts import grpo

    [line] = [line for line in commands("text") if " trl " in line]
    words = shlex.split(line.partition("trl grpo ")[2])
    place = words.index("--accelerate_config")  # for the launcher
    assert (REPOSITORY / words.pop(place + 1)).is_file() and words.pop(place)
    monkeypatch.chdir(REPOSITORY)
    _, arguments, _, _ = grpo.make_parser().parse_args_and_config([*words, "--use_cpu", "true", "--bf16", "false"])
    assert arguments.vllm_mode == "server" and arguments.use_vllm


def test_every_recipe_folder_is_on_the_page():
    folders = {file.parent.name for file in (REPOSITORY / "recipes").glob("*/*.yaml")}
    assert {name for name in folders if f"`{name}/`" not in PAGE} == set()
    launches = {file.name for file in (REPOSITORY / "recipes" / "accelerate").glob("*.yaml")}
    assert {name for name in launches if f"accelerate/{name}" not in PAGE} == set()
