"""The Ray engine on a real local cluster of two nodes: same bytes, also when a worker is killed in the middle.

Needs `pip install "hf-lmmixup[ray]"`; run with `-m slow`.
"""

import os
import signal
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest
from hashing_encoder import HashingEncoder
from typer.testing import CliRunner

from hf_lmmixup import ray_engine
from hf_lmmixup.cli import app
from hf_lmmixup.recipe import DistillerRecipe, Recipe
from hf_lmmixup.writers import Writer


PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

sys.path.insert(0, {tests!r})
os.environ["PYTHONPATH"] = os.pathsep.join([{tests!r}, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])

import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 2}})
cluster.add_node(num_cpus=2)
ray.init(address=cluster.address, log_to_driver=False)
assert len(ray.nodes()) == 2

from borrowed_tools import CopyingWriter, raw_rows, tools
from hashing_encoder import HashingEncoder
from test_modes import TRAINING_FREE, recipe
from hf_lmmixup.bundled import rated_texts
from hf_lmmixup.datastore import build
from hf_lmmixup.pipeline import run
from hf_lmmixup.preparation import Tools
from hf_lmmixup.ray_engine import ClusterEncoder, ClusterWriter, Pool, cluster_rater, connected
from hf_lmmixup.writers import Writer

folder = Path({folder!r})
store = build(*zip(*[(r.text, r.score, r.task_type) for r in rated_texts("train")[:400]]), HashingEncoder())
store.save(folder / "store")


class Deadly(CopyingWriter):
    # the first worker that comes here dies like one that ran out of memory
    def generate(self, conversations, *, seeds=None, on_reply=None):
        (folder / f"seen-{{os.getpid()}}").touch()
        try:
            (folder / "killed").touch(exist_ok=False)
        except FileExistsError:
            return super().generate(conversations, seeds=seeds, on_reply=on_reply)
        os.kill(os.getpid(), signal.SIGKILL)


pool = Pool(actors=2, cpus=1)
own = dict(datastore=str(folder / "store"), distiller=TRAINING_FREE, rows=raw_rows(range(600)))
with connected():
    run(
        recipe(folder, "ray", **own),
        tools=Tools(
            ClusterEncoder(HashingEncoder, "hashing", pool),
            rater=cluster_rater(pool),
            writer=Writer("copying", ClusterWriter(lambda: Writer("copying", Deadly().generate), pool).generate),
        ),
    )
assert (folder / "killed").exists()
assert len(list(folder.glob("seen-*"))) >= 2, "one worker did it all"
run(recipe(folder, "local", **own), tools=Tools(HashingEncoder(), writer=tools().writer))
data = "dataset/data/train-00000-of-00001.parquet"
assert (folder / "ray" / data).read_bytes() == (folder / "local" / data).read_bytes()
for stage in ("2_embed/embeddings.npy", "3_rate/rows.arrow"):
    assert (folder / "ray/stages" / stage).read_bytes() == (folder / "local/stages" / stage).read_bytes(), stage
print("same bytes")
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_two_nodes_and_a_killed_worker_give_the_same_bytes(tmp_path):
    assert util.find_spec("ray"), 'pip install "hf-lmmixup[ray]"'
    program = PROGRAM.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            told, wrong = process.communicate(timeout=500)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, wrong[-4000:]
    assert "same bytes" in told


def test_a_request_that_nobody_answered_is_told_to_no_journal(monkeypatch):
    def here(items, open_worker, pool, *, on_result=None):
        results = open_worker()(items)
        for place, result in enumerate(results):
            on_result(place, result)
        return results

    def generate(conversations, *, seeds=None, on_reply=None):
        on_reply(1, None)  # a refusal, which is an answer
        on_reply(2, "good")
        return [None, None, "good"]

    monkeypatch.setattr(ray_engine, "spread", here)
    told = []
    writer = ray_engine.ClusterWriter(lambda: Writer("served", generate), ray_engine.Pool())
    texts = writer.generate([[{"role": "user", "content": "tides"}]] * 3, on_reply=lambda *reply: told.append(reply))
    assert texts == [None, None, "good"]
    assert told == [(1, None), (2, "good")]


def test_a_model_that_cannot_write_is_refused_before_a_run_begins(monkeypatch):
    monkeypatch.setattr(ray_engine, "load_encoder", lambda name: HashingEncoder())
    options = {"mode": "training-free", "model": "nofolder", "max_new_tokens": 5000}
    recipe = Recipe("r", distiller=DistillerRecipe(**options))
    with pytest.raises(FileNotFoundError, match="No model can be read from 'nofolder'"):
        ray_engine.cluster_tools(recipe, ray_engine.Pool())
    monkeypatch.setattr(ray_engine, "opened", lambda *_: SimpleNamespace(max_position_embeddings=4096))
    with pytest.raises(ValueError, match="max_new_tokens=5000 leaves no room for a prompt in 4096 positions"):
        ray_engine.cluster_tools(recipe, ray_engine.Pool())


def test_unknown_engine_and_missing_ray_are_said(tmp_path, monkeypatch):
    def told(*options):
        result = CliRunner().invoke(app, ["run", "extractive", "-o", str(tmp_path / "run"), *options])
        assert result.exit_code == 1
        return " ".join(result.output.split())

    assert "Unknown engine 'spark'. Expected one of ['local', 'ray']" in told("--engine", "spark")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert 'pip install "hf-lmmixup[ray]"' in told("--engine", "ray")
