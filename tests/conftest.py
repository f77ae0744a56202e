"""What every test shares: no network but loopback, few threads, and one small finished run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

LOOPBACK = ("127.0.0.1", "::1", "localhost")

REPOSITORY = Path(__file__).parents[1]

TINY_RUN = """
name: tiny-run
input: {pool}
output: {output}
distiller:
  model: tiny
  reading_steps: 2
  cold_start: sft.yaml
  grpo: grpo.yaml
  max_new_tokens: 24
  attempts: 1
  held_out: 5
"""

SHARED = (
    "comparison evaluation gpu_training new_user pipeline recipes sftmix_distributed sftmix_recipe training_page "
    "training_resume"
).split()
"""Files that one parallel worker takes together, because they share the finished run or the server of `trl_forks`."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give the tests of a file, or of several that share something dear, to one worker."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "shared" if Path(file).stem.removeprefix("test_") in SHARED else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def loopback_only():
    """A connection to any other host fails the test that tries it."""
    original = socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
            raise AssertionError(f"a test tried to reach {address}")
        return original(self, address)

    socket.socket.connect = connect
    yield
    socket.socket.connect = original


def write_tiny_run(folder: Path, name: str) -> Path:
    """A recipe that does the whole job with a few training steps, on the first rows of the bundled pool."""
    recipes = REPOSITORY / "recipes" / "quickstart"
    short = {"sft.yaml": ("max_steps", 3), "grpo.yaml": ("max_steps", 2)}
    for file, (key, value) in short.items():
        lines = [line for line in (recipes / file).read_text().splitlines() if not line.startswith((key, "max_compl"))]
        lines += [f"{key}: {value}"] + (["max_completion_length: 16"] if file == "grpo.yaml" else [])
        (folder / file).write_text("\n".join(lines))
    pool = (REPOSITORY / "hf_lmmixup" / "data" / "pool.jsonl").read_text().splitlines()[:60]
    (folder / "pool.jsonl").write_text("\n".join(pool))
    recipe = folder / f"{name}.yaml"
    recipe.write_text(TINY_RUN.format(pool=folder / "pool.jsonl", output=folder / name))
    return recipe


def lmmixup(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "hf_lmmixup.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=check, env=os.environ)


def invoked(*arguments: object, code: int = 0) -> str:
    """Run the command in this process; what it printed, as one line."""
    from typer.testing import CliRunner

    from hf_lmmixup.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def checkpointing(is_on: bool) -> dict[str, bool]:
    """The argument of a training by its name here: transformers 5.23 has a new one and warns of the old."""
    from transformers import TrainingArguments

    names = TrainingArguments.__dataclass_fields__
    return {"activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing": is_on}


def unit(rows):
    """Rows of length 1, as an encoder makes them."""
    import numpy as np  # not above: it reads the number of threads when it is imported

    vectors = np.asarray(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub on this machine, empty where a file of tests begins."""
    from loopback_hub import serve

    with serve(tmp_path_factory.mktemp("hub") / "store") as server:
        yield server


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """The directory of a run from raw rows to report, trained for a few steps."""
    folder = tmp_path_factory.mktemp("finished")
    lmmixup("run", write_tiny_run(folder, "run"))
    return folder / "run"
