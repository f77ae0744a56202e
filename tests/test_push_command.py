"""`lmmixup push` against a Hub on loopback: what it says, its exit codes, and what is there afterwards."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import lmmixup
from hashing_encoder import HashingEncoder
from hub_client import client_of
from loopback_hub import WRITE_TOKEN

from hf_lmmixup.datastore import build


FACTS = {
    "name": "pile",
    "recipe": {"input": "bundled", "datastore": "bundled", "distiller": {"model": "tiny"}},
    "ledger": {"rows_in": 4, "kept": 2, "merged": 2, "dropped": {}, "distilled_rows": 1, "notes": []},
    "rows": {"in": 4, "out": 3, "original": 2, "distilled": 1},
    "models": ["untrained", "cold start"],
}
SHARD = "dataset/data/train-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with client_of(hub, tmp_path_factory.mktemp("client"), imports="hf_lmmixup.cli") as worker:
        yield worker


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with something of each kind; nothing in it was computed."""
    folder = tmp_path_factory.mktemp("push") / "run"
    (folder / SHARD).parent.mkdir(parents=True)
    pq.write_table(pa.table({"id": ["a", "b", "c"], "prompt": ["p"] * 3, "completion": ["c"] * 3}), folder / SHARD)
    (folder / "facts.json").write_text(json.dumps(FACTS))
    (folder / "report.html").write_text("<!doctype html><title>pile</title>")
    texts = [f"Q: {word}?\nA: {word} {word}." for word in ("tides", "moon", "rust", "iron", "rain", "snow")]
    build(texts, [0, 1, 2, 3, 4, 5], ["qa"] * 6, HashingEncoder()).save(folder / "datastore")
    (folder / "distiller").mkdir()
    (folder / "distiller" / "config.json").write_text('{"model_type": "qwen2"}')
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(4, np.float32)}, folder / "distiller" / "model.safetensors")
    (folder / "distiller" / ".env").write_text("KEY=1")
    return folder


KINDS = [  # kind, its repository on the Hub, a file that must be there
    ("dataset", "datasets/tester/dataset", "data/train-00000-of-00001.parquet"),
    ("distiller", "models/tester/distiller", "model.safetensors"),
    ("datastore", "datasets/tester/datastore", "datastore.safetensors"),
    ("report", "spaces/tester/report", "index.html"),
]


@pytest.mark.parametrize(("kind", "key", "file"), KINDS, ids=[row[0] for row in KINDS])
def test_each_kind_is_pushed_private_once_and_public_when_asked(hub, client, run, kind, key, file):
    told = client.call("command", "push", kind, str(run), f"tester/{kind}")
    assert told["code"] == 0, told
    assert file in hub.store.files(key) and ".env" not in hub.store.files(key)
    assert hub.store.repositories[key]["private"] and "Visible to you alone." in told["said"]
    assert file in told["said"] and f"{hub.endpoint}/" in told["said"] and told["said"].endswith("(private)")
    commits = hub.commits(key)
    again = client.call("command", "push", kind, str(run), f"tester/{kind}", "--public")
    assert "Nothing to send" in again["said"] and again["said"].endswith("(public)")
    assert hub.commits(key) == commits and not hub.store.repositories[key]["private"]
    refused = client.call("command", "push", kind, str(run), f"tester/{kind}")
    assert refused["code"] == 3 and "exists and is public" in refused["said"] and "--public" in refused["said"]


def test_a_dry_run_shows_everything_and_sends_nothing(hub, client, run):
    asked = len(hub.requests)
    told = client.call("command", "push", "dataset", str(run), "tester/dry", "--dry-run")
    assert told["code"] == 0 and "data/train-00000-of-00001.parquet" in told["said"] and "dry run" in told["said"]
    assert [line for line in hub.requests[asked:] if not line.startswith(("GET", "HEAD"))] == []
    assert "datasets/tester/dry" not in hub.store.repositories


def test_tag_and_license_are_taken(hub, client, run):
    told = client.call(
        "command", "push", "report", str(run), "tester/tagged", "--tag", "v1", "--license", "apache-2.0"
    )
    assert told["code"] == 0 and "License: apache-2.0." in told["said"]
    assert list(hub.store.repositories["spaces/tester/tagged"]["tags"]) == ["v1"]


REFUSED = [  # arguments, exit code, what the message says
    (["dataset", "RUN/nothing", "tester/x"], 1, "holds no dataset"),
    (["dataset", "RUN", "no-owner"], 1, "names no owner"),
    (["report", "RUN", "tester/x", "--license", "mit"], 1, "does not cover the sources"),
    (["weights", "RUN", "tester/x"], 2, "No such command 'weights'"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_cannot_be_pushed_is_one_clear_message(client, run, arguments, code, message):
    told = client.call("command", "push", *(argument.replace("RUN", str(run)) for argument in arguments))
    assert (told["code"], message in told["said"]) == (code, True), told


def test_the_console_script_itself(hub, run, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": WRITE_TOKEN, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "hf_lmmixup.cli", "push", "dataset", str(run), "tester/script"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0 and "(private)" in told.stderr, told.stderr
    assert told.stdout == "" and WRITE_TOKEN not in told.stderr
    assert "data/train-00000-of-00001.parquet" in hub.store.files("datasets/tester/script")


def test_offline_is_said(run):
    told = lmmixup("push", "report", run, "tester/offline", check=False)  # the tests run with HF_HUB_OFFLINE=1
    assert told.returncode == 3 and "HF_HUB_OFFLINE" in told.stderr and "Traceback" not in told.stderr
