"""The main job, whole: by the command, with real training, killed, repeated, and fed with bad input."""

import hashlib
import json
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import lmmixup, write_tiny_run
from datasets import load_dataset
from trl_forks import failures, job, run_jobs

from hf_lmmixup.datastore import ScoredDatastore
from hf_lmmixup.loading import load_rows
from hf_lmmixup.pipeline import run
from hf_lmmixup.recipe import DistillerRecipe, Recipe, SelectRecipe
from hf_lmmixup.records import MERGED


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_dataset_loads_without_this_package(finished_run, tmp_path):
    rows = load_dataset(str(finished_run / "dataset"), split="train", cache_dir=tmp_path / "cache")
    assert rows.features == MERGED
    assert len(rows) == len(set(rows["id"][:]))
    assert set(rows["origin"][:]) <= {"original", "distilled"}
    # Another run's dataset of the same name is another dataset, for `datasets` and for this package.
    shutil.copytree(finished_run / "dataset", tmp_path / "other" / "dataset")
    [file] = (tmp_path / "other" / "dataset" / "data").iterdir()
    pq.write_table(pq.read_table(file).slice(0, 1), file)
    other = str(tmp_path / "other" / "dataset")
    assert len(rows) > len(load_dataset(other, split="train", cache_dir=tmp_path / "cache")) == 1
    assert load_rows(other).dataset["id"][:] == rows["id"][:1]


def test_distiller_and_datastore_load(finished_run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished_run / "distiller")
    tokenizer = AutoTokenizer.from_pretrained(finished_run / "distiller")
    assert 1_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    assert tokenizer.decode(tokenizer("<think>a</think>").input_ids, skip_special_tokens=True) == "<think>a</think>"
    assert len(ScoredDatastore.load(finished_run / "datastore")) > 900
    names = {path.name for path in (finished_run / "distiller").iterdir()}
    assert "model.safetensors" in names
    assert not names & {"training_args.bin", "optimizer.pt", "trainer_state.json"}


def test_every_row_is_in_one_state(finished_run):
    ledger = json.loads((finished_run / "ledger.json").read_text())
    assert ledger["rows_in"] == ledger["kept"] + ledger["merged"] + sum(ledger["dropped"].values()) == 60
    states = pq.read_table(finished_run / "rows.parquet").to_pydict()
    assert len(set(states["id"])) == 60
    final = set(load_rows(finished_run / "dataset" / "data" / "train-00000-of-00001.parquet").dataset["id"])
    for identifier, state, detail in zip(*states.values(), strict=True):
        assert {"kept": identifier in final, "merged": detail in final, "dropped": identifier not in final}[state]


def test_report_and_versions_come_from_the_run(finished_run):
    report = (finished_run / "report.html").read_text()
    assert "tiny-run" in report
    facts = json.loads((finished_run / "facts.json").read_text())
    assert set(facts["held_out"]) == {"untrained", "cold start", "GRPO"}
    assert facts["held_out"]["untrained"]["format"] == 0
    assert facts["histories"]["GRPO"][-1]["step"] == 2
    assert "rewards/format_reward/mean" in facts["histories"]["GRPO"][-1]
    assert {"trl", "torch", "datasets"} <= set(facts["versions"])


def test_finished_run_is_left_alone(finished_run):
    before = digests(finished_run)
    told = lmmixup("run", finished_run.parent / "run.yaml")
    assert "Nothing to do" in told.stderr
    assert digests(finished_run) == before


def test_killed_run_goes_on_and_gives_the_same_bytes(finished_run, tmp_path):
    recipe = write_tiny_run(tmp_path, "killed")
    (tmp_path / "pool.jsonl").write_bytes((finished_run.parent / "pool.jsonl").read_bytes())
    stages = tmp_path / "killed" / "stages"
    for stage in ("3_rate", "5_cold_start"):  # killed while clustering, and while GRPO trains
        killed = job("lmmixup", ["run", recipe], tmp_path / "log", kill_when=stages / stage)
        assert run_jobs(killed) == [-signal.SIGKILL], failures([1], killed)
    times = {path.name: path.stat().st_mtime_ns for path in stages.iterdir() if not path.name.startswith(".")}
    whole = job("lmmixup", ["run", recipe], tmp_path / "log")
    assert run_jobs(whole) == [0], failures([1], whole)
    assert {name: (stages / name).stat().st_mtime_ns for name in times} == times
    assert digests(tmp_path / "killed" / "dataset") != {}
    data = "data/train-00000-of-00001.parquet"
    assert digests(tmp_path / "killed" / "dataset")[data] == digests(finished_run / "dataset")[data]


@pytest.fixture(scope="module")
def untrained(finished_run, tmp_path_factory):
    """A recipe that takes the finished run's distiller as it is, so that nothing is trained."""
    folder = tmp_path_factory.mktemp("untrained")

    def recipe(**changes):
        options = {"input": str(finished_run.parent / "pool.jsonl"), "output": str(folder / "run")}
        distiller = DistillerRecipe(model=str(finished_run / "distiller"), max_new_tokens=8, attempts=1, held_out=0)
        return Recipe(**({"name": "untrained", "distiller": distiller} | options | changes))

    return recipe


def test_other_settings_in_one_directory_are_refused_by_name(untrained):
    run(untrained())
    with pytest.raises(ValueError, match=r"recipe\.select\.min_score=4.*3"):
        run(untrained(select=SelectRecipe(min_score=3)))


def test_order_of_the_input_changes_nothing(untrained, tmp_path):
    recipe = untrained(output=str(tmp_path / "a"))
    run(recipe)
    shuffled = sorted(Path(recipe.input).read_text().splitlines(), key=hash_of)
    (tmp_path / "pool.jsonl").write_text("\n".join(shuffled))
    run(untrained(output=str(tmp_path / "b"), input=str(tmp_path / "pool.jsonl")))
    assert digests(tmp_path / "a/dataset/data") == digests(tmp_path / "b/dataset/data")


def hash_of(line):
    return hashlib.sha256(line.encode()).hexdigest()


BAD_INPUT = [
    ("empty.jsonl", b"", "is empty"),
    ("blank.jsonl", b"\n\n", "is empty"),
    ("text.jsonl", b"not json\n", "no usable row"),
    ("utf8.jsonl", b'{"prompt": "\xff", "completion": "b"}\n', "invalid UTF-8"),
    ("deep.jsonl", b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}\n", "nested deeper"),
    ("columns.jsonl", b'{"question": "a", "reply": "b"}\n', "none of the accepted forms"),
    ("parquet.parquet", b"PAR1", "not a Parquet file"),
    ("missing.jsonl", None, "No file at"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_INPUT, ids=[row[0] for row in BAD_INPUT])
def test_bad_input_is_one_clear_message(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    told = lmmixup("run", "quickstart", "--input", tmp_path / name, "--output", tmp_path / "run", check=False)
    assert told.returncode == 1
    assert message in " ".join(told.stderr.split())
    assert "Traceback" not in told.stderr
    if content is None:  # a slip in the name binds the folder to nothing
        assert not list((tmp_path / "run").glob("*.json"))


def test_long_line_is_a_counted_reject(untrained, tmp_path):
    good = Path(untrained().input).read_bytes()
    (tmp_path / "long.jsonl").write_bytes(b'{"prompt": "' + b"x" * 60_000_000 + b'"}\n' + good)
    finished = run(untrained(input=str(tmp_path / "long.jsonl"), output=str(tmp_path / "run")))
    assert finished.ledger["rows_in"] == 61
    assert finished.ledger["dropped"]["line longer than 8388608 bytes"] == 1
