"""The way of a new user, as docs/publishing.md has it, against a Hub on loopback; other commands of the docs parse."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.main
from conftest import REPOSITORY
from hub_client import client_of
from loopback_hub import serve

from hf_lmmixup.cli import app


PAGES = [REPOSITORY / "docs" / "publishing.md", REPOSITORY / "docs" / "evaluating.md"]


def commands(page: Path) -> list[list[str]]:
    """The lines of every block of shell commands, block by block."""
    return [block.splitlines() for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)]


def test_seven_lines_from_raw_rows_to_a_loaded_model(finished_run, tmp_path):
    run, push, load, train, evaluate, push_distiller, use = commands(PAGES[0])[0]
    assert run == "lmmixup run quickstart"  # `finished_run` is such a run, with few steps
    shutil.copytree(finished_run, tmp_path / "run")

    def words(line):
        text = line.replace("runs/quickstart", str(tmp_path / "run")).replace("ada/", "tester/")
        return shlex.split(text.replace("models/", f"{tmp_path}/"))

    imports = "torch transformers trl.trainer.sft_trainer trl.scripts.sft"
    with serve(tmp_path / "store") as hub, client_of(hub, tmp_path, imports=imports) as client:
        told = client.call("command", *words(push)[1:])
        assert told["code"] == 0 and told["said"].endswith("(private)"), told
        assert "num_rows" in client.call("python", words(load)[2])
        short = ["--max_steps", "1", "--per_device_train_batch_size", "1", "--max_length", "64"]
        assert words(train)[:2] == ["trl", "sft"]
        client.call("train", *words(train)[2:], *short)
        assert (tmp_path / "quickstart-sft" / "model.safetensors").is_file()
        told = client.call("command", *words(evaluate)[1:], "--limit", "5")
        assert told["code"] == 0 and "reference" in told["said"], told
        assert "Systems side by side" in (tmp_path / "run" / "report.html").read_text()
        told = client.call("command", *words(push_distiller)[1:])
        assert told["code"] == 0 and told["said"].endswith("(private)"), told
        card = hub.store.files("models/tester/quickstart-distiller")["README.md"].decode()
        assert "Side by side on mini MIXTURE, test split" in card and "| extractive | 2 |" in card
        assert client.call("python", words(use)[2]).strip() == "qwen2"


@pytest.mark.parametrize(
    "line", [line for page in PAGES for block in commands(page) for line in block if line.startswith("lmmixup")]
)
def test_commands_of_the_docs_parse(line):
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context("lmmixup", words)
    assert context.params is not None
