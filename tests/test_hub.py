"""Pushes to a Hub on loopback: what leaves, what is there afterwards, and what faults, kills and others change."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hub_client import Raised, client_of
from loopback_hub import READ_TOKEN, WRITE_TOKEN, Fault

from hf_lmmixup.datastore import ScoredDatastore, build


FACTS = {
    "name": "pile",
    "recipe": {"input": "/home/ada/pile.jsonl", "datastore": "bundled", "distiller": {"model": "tiny"}},
    "ledger": {"rows_in": 9, "kept": 4, "merged": 4, "dropped": {"load: empty": 1}, "distilled_rows": 2, "notes": []},
    "rows": {"in": 9, "out": 6, "original": 4, "distilled": 2},
    "scores": {"before": {"1": 5, "4": 4}, "distilled": {"3": 2}, "after": {"3": 2, "4": 4}},
    "cluster_sizes": {"2": 2},
    "held_out": {"GRPO": {"prompts": 5, "format": 0.9, "alignment": None, "quality": 0.2, "total": 0.3}},
    "histories": {"GRPO": [{"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.3}]},
    "models": ["untrained", "cold start", "GRPO"],
    "versions": {"trl": "1.16.0"},
}
SHARD = "data/train-00000-of-00001.parquet"
DATASET_FILES = [
    ".gitattributes",
    "README.md",
    SHARD,
    "plots/cluster-sizes.svg",
    "plots/scores.svg",
    "run/ledger.json",
    "run/recipe.yaml",
]
NOT_TO_LEAVE = [
    ".env",
    "data/.env",
    "data/train-00000-of-00001.parquet.partial",
    "data/notes.txt",
    "training_args.bin",
    "optimizer.pt",
    "__pycache__/a.cpython-311.pyc",
    ".git/config",
]


def rows(text):
    """Six rows; their bytes depend on `text`, so that the Hub does not hold them already."""
    return {"id": [f"{n:016x}" for n in range(6)], "prompt": [f"{text}{n}" for n in range(6)], "completion": ["c"] * 6}


class Encoder:
    """Embeds a text by what its letters are."""

    name, revision = "letters", None

    def encode(self, texts):
        rows = np.array([[text.count(letter) + 1 for letter in "abcdefgh"] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_datastore(folder):
    texts = [f"Q: {letter * 3}\nA: {letter * 7}" for letter in "abcdefghijkl"]
    build(texts, [number % 6 for number in range(12)], ["qa"] * 12, Encoder()).save(folder)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory, with much beside the artefacts that must not leave."""
    folder = tmp_path / "run"
    (folder / "dataset" / "data").mkdir(parents=True)
    pq.write_table(pa.table(rows(tmp_path.name)), folder / "dataset" / SHARD)
    (folder / "facts.json").write_text(json.dumps(FACTS))
    (folder / "report.html").write_text("<!doctype html><title>pile</title>")
    write_datastore(folder / "datastore")
    for name in NOT_TO_LEAVE:
        for artefact in ("dataset", "datastore"):
            path = folder / artefact / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("private")
    (folder / "dataset" / "data" / "train-00001-of-00002.parquet").symlink_to("/etc/hostname")
    (folder / "dataset" / "elsewhere").symlink_to("/etc")
    return folder


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with client_of(hub, tmp_path_factory.mktemp("client")) as worker:
        yield worker


@pytest.fixture
def name(hub, request):
    """A repository of this test's own; afterwards no fault is left."""
    hub.requests.clear()
    yield "tester/" + re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:80]
    hub.faults.clear()


def requests_of(hub, pattern):
    return [line for line in hub.requests if re.search(pattern, line)]


def tagged(hub, key):
    """Commits of a repository that have a tag."""
    return set(hub.store.repositories[key]["tags"].values())


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_pushed_dataset_loads_without_this_package(hub, client, run, name, xet):
    pushed = client.call("push", "dataset", run, name, xet=xet)
    key = f"datasets/{name}"
    files = hub.store.files(key)
    assert sorted(files) == DATASET_FILES
    assert hub.store.repositories[key]["private"] and pushed["private"]
    assert hub.commits(key) == 2 and pushed["commits"] == 1
    assert hub.store.repositories[key]["tags"] == {pushed["tag"]: pushed["commit"]}
    assert len(requests_of(hub, "xet-write-token")) == xet
    written = pa.table(rows(run.parent.name)).to_pylist()
    assert client.call("load", name, xet=xet) == written
    assert client.call("load", name, xet=xet, streaming=True, revision=pushed["tag"]) == written
    assert client.call("run_card", name, "dataset", xet=xet)["rows"] == "Dataset"
    card = files["README.md"].decode()
    assert f'load_dataset("{name}", split="train")' in card and "(plots/scores.svg)" in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "unknown"
    assert b"/home/ada" not in b"".join(files.values())


@pytest.mark.parametrize("kind", ["dataset", "datastore", "report"])
def test_a_second_push_makes_no_commit(hub, client, run, name, kind):
    first = client.call("push", kind, run, name)
    hub.requests.clear()
    second = client.call("push", kind, run, name)
    assert (first["commits"], second["commits"]) == (1, 0)
    assert (second["commit"], second["tag"]) == (first["commit"], first["tag"])
    assert requests_of(hub, "^(POST|PUT|DELETE)") == []


def test_a_changed_dataset_is_one_more_commit_and_old_shards_go(hub, client, run, name):
    first = client.call("push", "dataset", run, name)
    (run / "dataset" / SHARD).unlink()
    (run / "dataset/data/train-00001-of-00002.parquet").unlink()  # the link
    for shard in range(2):
        pq.write_table(pa.table(rows(f"{shard}")), run / "dataset" / f"data/train-0000{shard}-of-00002.parquet")
    second = client.call("push", "dataset", run, name)
    assert second["deleted"] == [SHARD] and SHARD not in second["uploaded"]
    assert hub.commits(f"datasets/{name}") == 3
    assert len(client.call("load", name)) == 12
    assert len(client.call("load", name, revision=first["tag"])) == 6  # what has the tag stays


def test_a_datastore_round_trip(hub, client, run, name):
    client.call("push", "datastore", run / "datastore", name)
    files = sorted(hub.store.files(f"datasets/{name}"))
    assert files == [".gitattributes", "README.md", "datastore.json", "datastore.safetensors"]
    loaded, saved = client.call("load_datastore", name), ScoredDatastore.load(run / "datastore")
    assert loaded["scores"] == saved.scores.tolist() and loaded["embeddings"] == saved.embeddings.tolist()
    assert client.call("run_card", name, "dataset")["datastore"] == "ScoredDatastore"
    assert "apache-2.0" in hub.store.files(f"datasets/{name}")["README.md"].decode()  # the license of the bundled rows


def test_a_datastore_pushes_itself(hub, client, run, name):
    pushed = client.call("push_loaded_datastore", run / "datastore", name)
    assert pushed["private"] and sorted(pushed["uploaded"]) == ["README.md", "datastore.json", "datastore.safetensors"]
    loaded, saved = client.call("load_datastore", name), ScoredDatastore.load(run / "datastore")
    assert loaded["scores"] == saved.scores.tolist() and loaded["embeddings"] == saved.embeddings.tolist()
    assert client.call("push_loaded_datastore", run / "datastore", name)["commits"] == 0  # the same bytes


def test_a_report_becomes_a_static_space(hub, client, run, name):
    pushed = client.call("push", "report", run, name)
    files = hub.store.files(f"spaces/{name}")
    assert sorted(files) == [".gitattributes", "README.md", "index.html"]
    assert files["index.html"] == (run / "report.html").read_bytes()
    assert yaml.safe_load(files["README.md"].split(b"---\n")[1])["sdk"] == "static"
    assert pushed["url"] == f"{hub.endpoint}/spaces/{name}"


# Visibility


def test_an_existing_public_repository_is_refused_before_anything_leaves(hub, client, run, name):
    hub.store.create(f"datasets/{name}", private=False, user="tester")
    with pytest.raises(Raised, match="PushError: .* exists and is public. Nothing was sent"):
        client.call("push", "dataset", run, name)
    assert requests_of(hub, "^(POST|PUT|DELETE)") == []


def test_public_comes_last(hub, client, run, name):
    pushed = client.call("push", "dataset", run, name, public=True)
    assert not pushed["private"] and not hub.store.repositories[f"datasets/{name}"]["private"]
    changes = [step for line in hub.requests for step in ("commit/", "tag/", "settings") if f"{name}/{step}" in line]
    assert changes == ["commit/", "tag/", "settings"]
    again = client.call("push", "dataset", run, name, public=True)
    assert again["commits"] == 0 and not again["private"]


def test_a_hub_that_stays_private_is_noticed(hub, client, run, name):
    hub.faults.append(Fault("PUT .*/settings", status=200))  # says yes, does nothing
    with pytest.raises(Raised, match="did not make .* public"):
        client.call("push", "dataset", run, name, public=True)


# What must not leave


def test_tokens_leave_in_no_file_and_in_no_log(hub, client, run, name):
    facts = {**FACTS, "recipe": {"input": f"https://ada:{WRITE_TOKEN}@host/p?key={WRITE_TOKEN}", "model": WRITE_TOKEN}}
    (run / "facts.json").write_text(json.dumps(facts))
    client.call("push", "dataset", run, name)
    hub.faults.append(Fault("commit", status=400))
    (run / "facts.json").write_text(json.dumps({**facts, "name": "changed"}))
    with pytest.raises(Raised) as refused:
        client.call("push", "dataset", run, name)
    assert WRITE_TOKEN not in str(refused.value)
    assert WRITE_TOKEN.encode() not in b"".join(hub.store.files(f"datasets/{name}").values())
    assert WRITE_TOKEN not in (client.folder / "log").read_text()
    assert WRITE_TOKEN not in (client.folder / "stderr").read_text()


@pytest.mark.parametrize("secret", [WRITE_TOKEN, "sk-" + "a1" * 20, "Bearer abcdefghijklmnop123"])
def test_a_file_with_a_token_is_refused_by_name(hub, client, run, name, secret):
    (run / "report.html").write_text(f"<p>{secret}</p>")
    with pytest.raises(Raised, match="ValueError: index.html holds a token") as refused:
        client.call("push", "report", run, name)
    assert secret not in str(refused.value)
    assert f"spaces/{name}" not in hub.store.repositories


def test_no_token_goes_to_the_host_of_large_files(hub, client, run, name):
    before = len(hub.authorized)
    client.call("push", "dataset", run, name)
    client.call("load", name)
    seen = list(zip(hub.requests, hub.authorized[before:], strict=True))
    assert any("__large__" in line for line, _ in seen)
    assert not any(authorized for line, authorized in seen if re.search("(PUT|GET|HEAD) /__large__", line))


# Faults


FAULTS = [
    ("GET /api/datasets/[^/]+/[^/]+$", Fault(status=503)),
    ("GET /api/datasets/[^/]+/[^/]+$", Fault(mode="drop")),
    ("POST /api/repos/create", Fault(status=429, headers={"Retry-After": "1"})),
    ("POST /api/repos/create", Fault(status=500)),
    ("POST /api/repos/create", Fault(mode="lose answer")),
    ("POST .*/preupload/", Fault(status=503)),
    ("POST .*/preupload/", Fault(mode="drop")),
    ("POST .*/objects/batch", Fault(status=503)),
    ("PUT /__large__/", Fault(status=503)),
    ("PUT /__large__/", Fault(mode="lose answer")),
    ("POST .*/commit/", Fault(status=409)),
    ("POST .*/commit/", Fault(status=412)),
    ("POST .*/commit/", Fault(status=429, headers={"Retry-After": "1"})),
    ("POST .*/commit/", Fault(status=503, times=3)),
    ("POST .*/commit/", Fault(mode="drop")),
    ("POST .*/commit/", Fault(mode="truncate")),
    ("POST .*/commit/", Fault(mode="lose answer")),
    ("GET .*/tree/", Fault(status=503, times=2)),
    ("GET .*/tree/", Fault(mode="drop")),
    ("GET .*/resolve/", Fault(status=503)),
    ("GET .*/resolve/", Fault(mode="truncate")),
    ("GET .*/refs", Fault(status=502)),
    ("POST .*/tag/", Fault(status=503)),
    ("POST .*/tag/", Fault(status=409)),
    ("POST .*/tag/", Fault(mode="lose answer")),
]


def fault_name(value):
    return re.sub(r"\W+", "-", value) if isinstance(value, str) else f"{value.mode}-{value.status}-{value.times}"


@pytest.mark.parametrize(("match", "fault"), FAULTS, ids=fault_name)
def test_faults_change_nothing_in_the_end(hub, client, run, name, match, fault):
    hub.faults.append(Fault(match, fault.mode, fault.times, 0, fault.status, fault.headers))
    pushed = client.call("push", "dataset", run, name)
    key = f"datasets/{name}"
    assert hub.faults[0].times == 0  # the fault did happen
    assert sorted(hub.store.files(key)) == DATASET_FILES
    assert hub.commits(key) == 2 and pushed["commits"] == 1  # a lost answer is no second commit
    assert tagged(hub, key) == {pushed["commit"]}
    assert hub.store.repositories[key]["private"]


def test_a_lost_answer_through_xet_is_no_second_commit(hub, client, run, name):
    hub.faults.append(Fault("POST .*/commit/", "lose answer"))
    client.call("push", "dataset", run, name, xet=True)
    assert hub.commits(f"datasets/{name}") == 2


def test_another_writer_in_between_loses_nothing(hub, client, run, name):
    hub.faults.append(Fault("POST .*/commit/", "other writer"))
    pushed = client.call("push", "dataset", run, name)
    assert hub.store.files(f"datasets/{name}")["other.txt"] == b"theirs"
    assert sorted(hub.store.files(f"datasets/{name}", pushed["tag"])) == sorted([*DATASET_FILES, "other.txt"])


def test_files_that_read_back_wrong_get_no_tag(hub, client, run, name):
    hub.faults.append(Fault("GET .*/resolve/.*/README.md", "corrupt"))
    with pytest.raises(Raised, match="README.md has SHA-256 .* No tag was set"):
        client.call("push", "dataset", run, name)
    assert not tagged(hub, f"datasets/{name}")
    assert client.call("push", "dataset", run, name)["commits"] == 0
    assert tagged(hub, f"datasets/{name}")


def test_a_hub_that_keeps_failing_is_an_error_that_says_what_to_do(hub, client, run, name):
    hub.faults.append(Fault("POST .*/commit/", times=100))
    with pytest.raises(Raised, match="PushError: The Hub did not take .*503.*push again"):
        client.call("push", "dataset", run, name)
    assert not tagged(hub, f"datasets/{name}")


def test_a_token_that_may_not_write(hub, run, name, tmp_path):
    with client_of(hub, tmp_path, READ_TOKEN) as reader:
        with pytest.raises(Raised, match="PushError: .* The token may not write to") as refused:
            reader.call("push", "dataset", run, name)
    assert READ_TOKEN not in str(refused.value)


def test_a_tag_of_other_files_is_refused(hub, client, run, name):
    client.call("push", "dataset", run, name, tag="v1")
    assert client.call("push", "dataset", run, name, tag="v1")["commits"] == 0
    (run / "facts.json").write_text(json.dumps({**FACTS, "name": "another"}))
    hub.requests.clear()
    with pytest.raises(Raised, match="The tag v1 of .* stands for other files. Choose another"):
        client.call("push", "dataset", run, name, tag="v1")
    assert requests_of(hub, "^(POST|PUT|DELETE)") == []


@pytest.mark.parametrize("tag", ["v 1", "", "-v1", "v1.", "a..b", "a/b", "v1\n", "v~1"])
def test_what_cannot_be_a_tag_is_refused_before_anything_leaves(hub, client, run, name, tag):
    with pytest.raises(Raised, match="ValueError: tag=.* cannot be the name of a tag"):
        client.call("push", "dataset", run, name, tag=tag)
    assert f"datasets/{name}" not in hub.store.repositories


# Kills


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_killed_at_every_request_then_run_again(hub, client, run, name, xet):
    client.call("push", "dataset", run, f"{name}-whole", xet=xet)
    steps = len(hub.requests)
    assert bool(requests_of(hub, "xet-write-token")) is xet
    whole = hub.store.files(f"datasets/{name}-whole")
    assert steps > 12
    for step in range(steps):
        repo_id = f"{name}-{step}"
        pq.write_table(pa.table(rows(f"step {step}, row ")), run / "dataset" / SHARD)
        whole[SHARD] = (run / "dataset" / SHARD).read_bytes()

        def arrange(pid, step=step):
            hub.faults[:] = [Fault(mode="kill", skip=step, pid=pid)]

        assert client.call("push", "dataset", run, repo_id, xet=xet, before=arrange) is None
        hub.faults.clear()
        key = f"datasets/{repo_id}"
        half = hub.store.repositories.get(key)
        if half is not None and half["tags"]:
            assert sorted(hub.store.files(key, next(iter(half["tags"])))) == DATASET_FILES  # a tag is whole
        pushed = client.call("push", "dataset", run, repo_id, xet=xet)
        files = hub.store.files(key)
        assert files.pop("README.md") == whole["README.md"].replace(f"{name}-whole".encode(), repo_id.encode())
        assert files == {path: content for path, content in whole.items() if path != "README.md"}
        assert hub.commits(key) == 2 and tagged(hub, key) == {pushed["commit"]}, step


# Licenses


def source_repository(hub, name, license):
    hub.store.create(f"datasets/{name}", private=False, user="tester")
    card = f"---\nlicense: {license}\n---\n".encode()
    tree = {"README.md": hub.store.small_entry(card)}
    hub.store.commit(f"datasets/{name}", "main", None, tree, "card", "tester")


def test_the_license_of_the_source_is_inherited(hub, client, run, name):
    source_repository(hub, f"{name}-raw", "cc-by-sa-4.0")
    facts = {**FACTS, "recipe": {"input": f"{name}-raw"}}
    (run / "facts.json").write_text(json.dumps(facts))
    client.call("push", "dataset", run, name)
    head = yaml.safe_load(hub.store.files(f"datasets/{name}")["README.md"].split(b"---\n")[1])
    assert head["license"] == "cc-by-sa-4.0" and head["source_datasets"] == [f"{name}-raw"]
    with pytest.raises(Raised, match="license='mit' does not cover the sources .*cc-by-sa-4.0"):
        client.call("push", "dataset", run, name, license="mit")


def test_own_rows_get_the_license_that_is_given(hub, client, run, name):
    assert client.call("push", "dataset", run, name, license="cc-by-4.0")["licenses"] == ["cc-by-4.0"]


def test_incompatible_sources_are_refused_by_name(hub, client, run, name):
    source_repository(hub, f"{name}-a", "cc-by-sa-4.0")
    source_repository(hub, f"{name}-b", "cc-by-nc-4.0")
    facts = {**FACTS, "source_licenses": {f"{name}-a": None, f"{name}-b": None}}
    (run / "facts.json").write_text(json.dumps(facts))
    hub.requests.clear()
    with pytest.raises(Raised, match=rf"{name}-a \(cc-by-sa-4.0\) and {name}-b \(cc-by-nc-4.0\) cannot be combined"):
        client.call("push", "dataset", run, name)
    assert requests_of(hub, "^(POST|PUT|DELETE)") == []


# Names and places


@pytest.mark.parametrize(
    ("repo_id", "message"),
    [
        ("pile", "names no owner. Expected OWNER/NAME"),
        ("../etc/passwd", "HFValidationError"),
        ("ada/pile\nx", "HFValidationError"),
        ("ada/a--b", "HFValidationError"),
    ],
)
def test_ids_that_are_none(hub, client, run, repo_id, message):
    with pytest.raises(Raised, match=message):
        client.call("prepare", "dataset", run, repo_id)


@pytest.mark.parametrize("kind", ["dataset", "distiller", "datastore", "report"])
def test_a_folder_without_the_artefact(hub, client, tmp_path, kind):
    with pytest.raises(Raised, match=f"ValueError: .* is no report|ValueError: .* holds no {kind}. Expected a run"):
        client.call("prepare", kind, tmp_path, "ada/pile")


def test_an_artefact_alone_gets_a_card_of_what_it_is(hub, client, run, name):
    os.remove(run / "facts.json")
    client.call("push", "dataset", run / "dataset", name, license="mit")
    card = hub.store.files(f"datasets/{name}")["README.md"].decode()
    assert "A distilled instruction dataset of 6 rows." in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"
    assert len(client.call("load", name)) == 6
