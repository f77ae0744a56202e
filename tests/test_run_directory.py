"""Stages exist whole or not at all; a directory has one writer and one fingerprint."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from datasets import Dataset

from hf_lmmixup import run_directory
from hf_lmmixup.fingerprint import input_fingerprint
from hf_lmmixup.records import LOADED, Outcome
from hf_lmmixup.run_directory import RunDirectory, read_arrow, write_json


ROWS = Dataset.from_dict({"id": ["a"], "prompt": ["p"], "completion": ["c"], "source": ["s"]}, features=LOADED)


def test_outcome_comes_back(tmp_path):
    directory = RunDirectory(tmp_path)
    assert not directory.has("1_load")
    directory.save_outcome("1_load", Outcome(ROWS, {"x:2": "duplicate"}))
    assert directory.has("1_load")
    loaded = directory.load_outcome("1_load", LOADED)
    assert loaded.dataset.to_list() == ROWS.to_list()
    assert loaded.dropped == {"x:2": "duplicate"}
    for outcome in (loaded, Outcome(ROWS)):
        assert outcome.columns("source", "id").to_list() == [{"id": "a", "source": "s"}]
    assert loaded.dataset is not loaded.dataset  # read anew: the outcome itself holds no rows


def test_texts_are_written_once_and_come_back_with_every_stage(tmp_path):
    directory = RunDirectory(tmp_path)
    texts = {name: [f"{name} {row}" for row in range(4)] for name in ("prompt", "completion", "source")}
    loaded = Dataset.from_dict({"id": list("abcd"), **texts}, features=LOADED)
    directory.save_outcome("1_load", Outcome(loaded))
    scored = loaded.select([3, 0, 2]).add_column("score", [1, 2, 3])
    directory.save_outcome("3_rate", Outcome(scored), new_texts=False)
    assert read_arrow(tmp_path / "stages/3_rate/rows.arrow").column_names == ["id", "score"]
    back = directory.load_outcome("3_rate", scored.features)
    assert back.dataset.to_list() == scored.to_list()
    assert back.columns("score", "prompt").to_list() == scored.select_columns(["score", "prompt"]).to_list()


def test_rows_are_written_in_order_of_their_id(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "GATHERED", 3)
    ids = np.random.default_rng(0).permutation(10)
    rows = Dataset.from_dict({"id": [f"row {number}" for number in ids], "score": ids})
    directory = RunDirectory(tmp_path)
    directory.save_outcome("1_load", Outcome(rows), by_id=True)
    back = directory.load_outcome("1_load", rows.features).dataset
    assert back.to_list() == [{"id": f"row {number}", "score": number} for number in range(10)]


def test_failed_stage_leaves_nothing_and_is_done_again(tmp_path):
    directory = RunDirectory(tmp_path)
    with pytest.raises(OSError, match="disk full"), directory.writing("out") as folder:
        (folder / "half").touch()
        raise OSError("disk full")
    assert not (tmp_path / "out").exists()
    with directory.writing("out") as folder:
        assert list(folder.iterdir()) == []
        (folder / "whole").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]


CLAIMED = {"input": {"sha256": "1"}, "recipe": {"seed": 0, "select": {"size": None}}}
DIFFERENT = [
    ({"input": {"sha256": "2"}, "recipe": CLAIMED["recipe"]}, r"input\.sha256='1'.*'2'"),
    ({**CLAIMED, "recipe": {"seed": 1, "select": {"size": None}}}, r"recipe\.seed=0.*1"),
    ({**CLAIMED, "recipe": {"seed": 0, "select": {"size": 9}}}, r"recipe\.select\.size=None.*9"),
    (
        {**CLAIMED, "evaluations": {"a.jsonl": {"bytes": 7}}},
        r"without evaluations\.a\.jsonl\.bytes, but .* 7; earlier versions",
    ),
    ({"recipe": CLAIMED["recipe"]}, r"input\.sha256='1', but this one has none"),
]


@pytest.mark.parametrize(("other", "message"), DIFFERENT)
def test_other_input_or_setting_is_refused_by_name(tmp_path, other, message):
    directory = RunDirectory(tmp_path)
    directory.claim(CLAIMED)
    directory.stage("1_load").mkdir()
    directory.claim(CLAIMED)
    with pytest.raises(ValueError, match=message):
        directory.claim(other)


def test_a_server_may_come_back_at_another_address_but_not_become_a_model_on_this_machine(tmp_path):
    def claim(endpoint, concurrency):
        directory.claim({"recipe": {"distiller": {"endpoint": endpoint, "concurrency": concurrency}}})

    directory = RunDirectory(tmp_path)
    claim("http://127.0.0.1:8000/v1", 16)
    directory.stage("1_load").mkdir()
    claim("http://127.0.0.1:9000/v1", 4)
    with pytest.raises(ValueError, match=r"recipe\.distiller\.endpoint='http://127.0.0.1:8000/v1'.*None"):
        claim(None, 16)


def test_a_directory_without_a_finished_stage_is_free(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.claim(CLAIMED)
    with pytest.raises(OSError), directory.writing("stages/1_load"):
        raise OSError("killed while loading")
    other = {**CLAIMED, "input": {"sha256": "2"}}
    directory.claim(other)
    directory.stage("1_load").mkdir()
    directory.claim(other)
    with pytest.raises(ValueError, match="holds a run"):
        directory.claim(CLAIMED)


@pytest.mark.parametrize("name", ["dataset", "recipe.yaml", "ledger.json", "stages/1_load"])
def test_a_folder_with_such_files_of_no_known_run_is_not_written_over(tmp_path, name):
    directory = RunDirectory(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"holds {name}, but no manifest.json"):
        directory.claim(CLAIMED)
    assert not (tmp_path / "manifest.json").exists()


def test_second_process_is_refused_and_a_stale_lock_is_not(tmp_path):
    program = (
        "import sys, time; from hf_lmmixup.run_directory import RunDirectory\n"
        f"with RunDirectory({str(tmp_path)!r}).locked():\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="Another run"), RunDirectory(tmp_path).locked():
            pass
        holder.kill()
    with RunDirectory(tmp_path).locked():
        assert (tmp_path / ".lock").exists()


def test_fingerprint_follows_content_not_time(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("x")
    before = input_fingerprint(str(file))
    time.sleep(0.01)
    file.write_text("x")
    assert input_fingerprint(str(file)) == before
    file.write_text("y")
    assert input_fingerprint(str(file)) != before
    assert input_fingerprint("owner/name") == {"name": "owner/name"}


CHANGES = [  # what happens in the folder, whether it is another input then
    (lambda folder: (folder / "a.parquet").write_text("y"), True),
    (lambda folder: (folder / "a.parquet").rename(folder / "b.parquet"), True),
    (lambda folder: (folder / "new.parquet").write_text(""), True),
    (lambda folder: (folder / "sub/c.parquet").unlink(), True),
    (lambda folder: (folder / "a.parquet").write_text("x"), False),
    (lambda folder: (folder / ".cache").mkdir() or (folder / ".cache/z").write_text("z"), False),
    (lambda folder: (folder / "cache-0123.arrow").write_text("z"), False),
]


@pytest.mark.parametrize(("change", "is_another"), CHANGES)
def test_fingerprint_of_a_folder_follows_places_and_contents(tmp_path, change, is_another):
    folder = tmp_path / "pile"
    for name in ("a.parquet", "sub/c.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    before = input_fingerprint(str(folder))
    assert (before["name"], before["files"], before["bytes"]) == ("pile", 2, 2)
    change(folder)
    assert (input_fingerprint(str(folder)) != before) == is_another


def test_json_is_replaced_whole(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1})
    write_json(tmp_path / "a.json", {"b": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
