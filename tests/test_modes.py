"""The main job without training: extractive and training-free, with duplicates, evaluation texts and a crash."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from borrowed_tools import CopyingWriter, judge, raw_rows, tools
from datasets import Dataset

from hf_lmmixup import results
from hf_lmmixup.artifacts import dataset_sources
from hf_lmmixup.journal import Journal
from hf_lmmixup.lineage import Step, story
from hf_lmmixup.neighbors import NeighborGraph, build_graph
from hf_lmmixup.pipeline import run
from hf_lmmixup.recipe import (
    DecontaminateRecipe,
    DeduplicateRecipe,
    DistillerRecipe,
    FaithfulnessRecipe,
    Recipe,
    SelectRecipe,
    load_recipe,
)
from hf_lmmixup.records import MERGED, RATED, Outcome, row_id
from hf_lmmixup.run_directory import read_arrow


GSM8K = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
DUPLICATE = {"prompt": "Tell me about tides", "completion": "They are excellent and pulled by the Moon every day."}

ROWS = [
    *raw_rows(range(24)),
    {"prompt": GSM8K, "completion": "72"},
    DUPLICATE,
    {"prompt": DUPLICATE["prompt"].upper(), "completion": DUPLICATE["completion"]},
    {"prompt": "What is that thing", "completion": "It is unclear to everybody."},
    {"prompt": "zxcv", "completion": "qwer uiop"},
]


def write_rows(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(folder: Path, name="run", /, rows=ROWS, **changes) -> Recipe:
    (folder / f"in-{name}").mkdir(exist_ok=True)
    options = {
        "name": "modes",
        "input": write_rows(folder / f"in-{name}" / "pile.jsonl", rows),
        "output": str(folder / name),
        "decontaminate": DecontaminateRecipe([write_rows(folder / "gsm8k.jsonl", [{"question": GSM8K}])]),
        "deduplicate": DeduplicateRecipe(0.999),
        "distiller": DistillerRecipe(mode="extractive"),
    }
    return Recipe(**(options | changes))


def test_arrow_gives_memory_back_within_a_run(tmp_path):
    found = []

    def told(title, done, total):
        found.append(pa.default_memory_pool().backend_name)

    before = pa.default_memory_pool().backend_name
    run(recipe(tmp_path), tools=tools(), progress=told)
    assert set(found) == {"system"}
    assert pa.default_memory_pool().backend_name == before


TRAINING_FREE = DistillerRecipe(mode="training-free", model="copying", prompt_price=1.0, completion_price=2.0)


def test_shards_together_are_the_dataset(tmp_path, monkeypatch):
    whole = run(recipe(tmp_path, "whole", distiller=TRAINING_FREE), tools=tools())
    monkeypatch.setattr(results, "ROWS_PER_SHARD", 3)
    parted = run(recipe(tmp_path, "parted", distiller=TRAINING_FREE), tools=tools())
    files = sorted((parted.directory / "dataset/data").iterdir())
    assert len(files) > 2
    rows = [row for file in files for row in Dataset.from_parquet(str(file))]
    assert rows == Dataset.from_parquet(str(whole.directory / "dataset/data/train-00000-of-00001.parquet")).to_list()
    assert {row["origin"] for row in rows} == {"original", "distilled"}
    for row in rows:
        assert row["id"] == row_id(row["prompt"], row["completion"])
        assert (row["source"] is None) == (row["reasoning"] is not None) == (row["origin"] == "distilled")


@pytest.mark.parametrize("distiller", [DistillerRecipe(mode="extractive"), TRAINING_FREE], ids=lambda one: one.mode)
def test_whole_job_without_training(tmp_path, distiller):
    finished = run(recipe(tmp_path, distiller=distiller), tools=tools())
    ledger = finished.ledger
    assert ledger["rows_in"] == len(ROWS) == ledger["kept"] + ledger["merged"] + ledger["dropped_total"]
    dropped = ledger["dropped"]
    assert dropped["decontaminate: holds a text of gsm8k"] == 1
    assert dropped["deduplicate: same text as another row"] == 1
    assert dropped["rate: the judge abstains"] == 1
    assert dropped["cluster: no related rows"] == 1
    rows = Dataset.from_parquet(str(finished.directory / "dataset/data/train-00000-of-00001.parquet"))
    assert rows.features == MERGED
    distilled = [row for row in rows if row["origin"] == "distilled"]
    assert len(distilled) == ledger["distilled_rows"] > 0
    assert all(row["novelty"] is not None and row["coverage"] > 0 for row in distilled)
    assert {row["distiller"] for row in distilled} == {"copying" if distiller is TRAINING_FREE else "extractive"}
    assert "report.html" in {path.name for path in finished.directory.iterdir()}
    facts = json.loads((finished.directory / "facts.json").read_text())
    costs = {entry["stage"]: entry for entry in facts["costs"]}
    stages = "load embed decontaminate rate deduplicate cluster distil check rate-again"
    assert list(costs) == [stage.replace("-", " ") for stage in stages.split()]
    if distiller is TRAINING_FREE:
        assert costs["distil"]["tokens"] > 0
        assert 0 < costs["distil"]["money"] < 0.01
    assert len(facts["map"]["x"]) > len(distilled)


def test_tokens_are_estimated_by_bytes_since_a_chinese_character_is_about_one(tmp_path):
    writer = CopyingWriter()
    job = recipe(tmp_path, rows=raw_rows(range(18), ("\u6f6e\u6c50\u548c\u6d77\u6c34" * 40,)), distiller=TRAINING_FREE)
    finished = run(job, tools=tools(writer))
    costs = {one["stage"]: one for one in json.loads((finished.directory / "facts.json").read_text())["costs"]}
    assert costs["distil"]["tokens"] > sum(len(text.encode()) for text in writer.asked) / 4 > 1000


def test_a_report_that_could_not_be_drawn_is_drawn_by_the_same_command(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "plotly.offline", None)
        page = run(recipe(tmp_path), tools=tools()).directory / "report.html"
        assert not page.exists() and "The same command then writes it" in caplog.text
    assert not run(recipe(tmp_path), tools=tools()).worked and page.is_file()


def test_made_up_facts_are_dropped_and_accounted_for(tmp_path):
    lying = CopyingWriter("<think>r</think>\n<answer>Q: What of 1969?\nA: Bob Stone, 4711 and 8812.</answer>")
    finished = run(
        recipe(tmp_path, distiller=TRAINING_FREE, faithfulness=FaithfulnessRecipe(max_novelty=0.5)),
        tools=tools(lying),
    )
    reason = "distilled row not in the dataset: faithfulness: facts that no source supports"
    assert finished.ledger["dropped"][reason] == 24
    assert finished.ledger["merged"] == 0


def test_a_distilled_row_with_the_text_of_an_original_is_booked_as_dropped(tmp_path):
    copying = CopyingWriter(
        f"<think>r</think>\n<answer>Q: {DUPLICATE['prompt']}\nA: {DUPLICATE['completion']}</answer>"
    )
    anything = FaithfulnessRecipe(max_novelty=None, min_coverage=None)
    finished = run(recipe(tmp_path, distiller=TRAINING_FREE, faithfulness=anything), tools=tools(copying))
    assert finished.ledger["dropped"]["distilled row not in the dataset: merge: same text as an original"] == 24
    assert (finished.ledger["kept"], finished.ledger["merged"], finished.ledger["distilled_rows"]) == (1, 0, 0)
    examples = json.loads((finished.directory / "facts.json").read_text())["examples"]
    assert [example["in_dataset"] for example in examples] == [False]
    weak = row_id(ROWS[0]["prompt"], ROWS[0]["completion"])
    assert story(finished.directory, weak)[-1] == Step("end", "not in the dataset")


def stern(rows: Dataset) -> Outcome:
    """Nothing that was distilled is any good."""
    judged = judge(rows).dataset
    if "sources" in rows.column_names:
        judged = judged.remove_columns("score").add_column("score", [1] * len(rows), feature=RATED["score"])
    return Outcome(judged)


FALLBACKS = [  # share, distilled rows kept of those written, what the note says
    (0.0, 0, "No distilled row scored 4 or more; none was kept."),
    (0.01, 1, "the best 1 of"),
    (0.5, 0.5, "were kept by score instead."),
]


@pytest.mark.parametrize(("share", "kept", "note"), FALLBACKS)
def test_fallback_where_no_distilled_row_is_good_enough(tmp_path, share, kept, note):
    options = SelectRecipe(fallback_share=share)
    ledger = run(recipe(tmp_path, distiller=TRAINING_FREE, select=options), tools=replace(tools(), judge=stern)).ledger
    written = len(read_arrow(tmp_path / "run/stages/8_rate_again/rows.arrow"))
    assert ledger["distilled_rows"] == (kept if isinstance(kept, int) else round(kept * written))
    assert note in ledger["notes"][0]
    below = ledger["dropped"]["distilled row not in the dataset: select: score below the minimum"]
    assert below == 24 - ledger["merged"]
    assert not [reason for reason in ledger["dropped"] if "size" in reason]


def test_recited_evaluation_texts_are_dropped(tmp_path):
    reciting = CopyingWriter(f"<think>r</think>\n<answer>Q: {GSM8K}\nA: 72</answer>")
    finished = run(recipe(tmp_path, distiller=TRAINING_FREE), tools=tools(reciting))
    reason = "distilled row not in the dataset: decontaminate: holds a text of gsm8k"
    assert finished.ledger["dropped"][reason] == 24


def test_embeddings_of_evaluation_texts_are_compared(tmp_path):
    options = DecontaminateRecipe(
        [write_rows(tmp_path / "own.jsonl", [{"text": "uiop A: zxcv Q: qwer"}])], min_similarity=0.9
    )
    finished = run(recipe(tmp_path, decontaminate=options), tools=tools())
    assert finished.ledger["dropped"]["decontaminate: rewords a text of own"] == 1


def test_the_recall_of_a_graph_in_cells_is_told_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lmmixup.vectors.build_graph", partial(build_graph, exact_below=0))
    monkeypatch.setattr("hf_lmmixup.neighbors.ROWS_PER_CELL", 4)
    monkeypatch.setattr("hf_lmmixup.neighbors.MAX_PROBES", 2)
    told = []
    finished = run(recipe(tmp_path), tools=tools(), progress=lambda title, done, total: told.append(title))
    recall = NeighborGraph.load(finished.directory / "stages/2_embed/graph.safetensors").recall
    assert 0 < recall < 1
    assert json.loads((finished.directory / "costs.json").read_text())["2_embed"]["recall"] == round(recall, 4)
    assert f"neighbor graph: {recall:.1%} of the true neighbors, measured on {len(ROWS)} rows" in told


def test_order_of_the_input_changes_nothing(tmp_path):
    for name, rows in (("a", ROWS), ("b", ROWS[::-1])):
        run(recipe(tmp_path, name, rows, distiller=TRAINING_FREE), tools=tools())
    data = "dataset/data/train-00000-of-00001.parquet"
    assert (tmp_path / "a" / data).read_bytes() == (tmp_path / "b" / data).read_bytes()


SLOW_RUN = """
import sys, time
sys.path.insert(0, {tests!r})
from borrowed_tools import CopyingWriter, tools
from test_modes import TRAINING_FREE, recipe
from pathlib import Path
from hf_lmmixup.pipeline import run

class Slow(CopyingWriter):
    def generate(self, conversations, *, seeds=None, on_reply=None):
        def slowly(place, text):
            time.sleep(0.2)
            on_reply(place, text)
        return super().generate(conversations, seeds=seeds, on_reply=slowly)

run(recipe(Path({folder!r}), distiller=TRAINING_FREE), tools=tools(Slow()))
"""


def test_killed_distillation_asks_only_for_the_rest(tmp_path):
    program = SLOW_RUN.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    journal = tmp_path / "run" / "distil.journal"
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True) as process:
        while not journal.is_file() or journal.read_bytes().count(b"\n") < 4:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    with Journal(journal, {"distiller": "copying", "seed": 0}) as held:
        known = len(held)
    writer = CopyingWriter()
    killed = recipe(tmp_path, distiller=TRAINING_FREE)
    run(killed, tools=tools(writer))
    clusters = read_arrow(tmp_path / "run/stages/4_cluster/rows.arrow")["cluster_id"].to_pylist()
    assert 3 <= known < len(set(clusters))
    assert len(writer.asked) == len(set(clusters)) - known
    run(recipe(tmp_path, "whole", distiller=TRAINING_FREE), tools=tools())
    data = "dataset/data/train-00000-of-00001.parquet"
    assert (tmp_path / "run" / data).read_bytes() == (tmp_path / "whole" / data).read_bytes()


BAD = [
    ("mode: magic", r"mode is 'magic', but must be one of"),
    ("engine: onnx", r"engine is 'onnx'"),
    ("mode: training-free", r"needs an instruct model"),
    ("mode: extractive, grpo: x.yaml", r"trains nothing"),
    ("allow_http: 1", r"allow_http is 1, but must be bool"),
]


@pytest.mark.parametrize(("distiller", "message"), BAD)
def test_bad_distiller_is_named(tmp_path, distiller, message):
    (tmp_path / "r.yaml").write_text(f"name: x\ndistiller: {{{distiller}}}\n")
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_a_changed_folder_or_evaluation_set_is_another_run(tmp_path):
    rows, pile = Dataset.from_list(list(ROWS)), tmp_path / "pile"
    rows.save_to_disk(str(pile))
    mine = recipe(tmp_path, input=str(pile))
    assert run(mine, tools=tools()).worked
    assert not run(mine, tools=tools()).worked
    write_rows(tmp_path / "gsm8k.jsonl", [{"question": "Who sold clips to half of her many friends?"}])
    with pytest.raises(ValueError, match=r"holds a run with evaluations\..*gsm8k\.jsonl\.bytes="):
        run(mine, tools=tools())
    Path(tmp_path / "gsm8k.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="No evaluation set at"):
        run(mine, tools=tools())
    mine = recipe(tmp_path, input=str(pile))
    rows.select(range(20)).save_to_disk(str(tmp_path / "other"))
    shutil.rmtree(pile)
    (tmp_path / "other").rename(pile)
    with pytest.raises(ValueError, match=r"holds a run with input\.bytes="):
        run(mine, tools=tools())


def test_a_local_folder_is_not_taken_for_a_dataset_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Dataset.from_list(list(ROWS)).save_to_disk("data/pile")
    run(recipe(tmp_path, input="data/pile"), tools=tools())
    assert [source.repo_type for source in dataset_sources(tmp_path / "run")] == [None]  # no license is looked up
    card = (tmp_path / "run/dataset/README.md").read_text()
    assert "The raw rows are pile." in card and "data/pile" not in card.partition("<details>")[0]


def test_a_run_with_a_missing_evaluation_set_claims_no_directory(tmp_path):
    missing = recipe(tmp_path, decontaminate=DecontaminateRecipe([str(tmp_path / "nowhere.jsonl")]))
    with pytest.raises(FileNotFoundError, match="No evaluation set at"):
        run(missing, tools=tools())
    assert not (tmp_path / "run/manifest.json").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:8000/v1", "http://example.com/v1", "https://example.com/v1"])
def test_a_run_with_an_impossible_endpoint_claims_no_directory(tmp_path, address, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    wrong = DistillerRecipe(mode="training-free", model="copying", endpoint=address)
    with pytest.raises(ValueError, match="must look like https|unencrypted|OPENAI_API_KEY is not set"):
        run(recipe(tmp_path, distiller=wrong), tools=tools())
    assert not (tmp_path / "run").exists()


def test_evaluations_are_a_list_of_texts(tmp_path):
    (tmp_path / "r.yaml").write_text("name: x\ndecontaminate: {evaluations: gsm8k.jsonl}\n")
    with pytest.raises(ValueError, match=r"must be a list of texts"):
        load_recipe(tmp_path / "r.yaml")


def test_rewards_have_their_datastore_where_python_drops_assertions():
    program = """
from pathlib import Path
from types import SimpleNamespace
from hf_lmmixup.distilling import Distilling

class Rows:
    @property
    def datastore(self):
        print("built")

stages = SimpleNamespace(directory=SimpleNamespace(path=Path("run")), progress=None)
Distilling(SimpleNamespace(encoder=None), stages, Rows(), None, None).environment
"""
    told = subprocess.run([sys.executable, "-O", "-c", program], check=True, capture_output=True, text=True)
    assert told.stdout == "built\n"
