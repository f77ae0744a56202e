"""Data arms: who trains on what, for how long; scores kept over interruptions; intervals in the table."""

import json
import math
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from borrowed_tools import tools
from conftest import REPOSITORY, lmmixup
from datasets import Dataset
from test_modes import ROWS, recipe

from hf_lmmixup.comparison import Comparison, compare, markdown
from hf_lmmixup.comparison_figures import arms
from hf_lmmixup.data_arms import ARMS, RunRows, arm_rows, rows_of_run
from hf_lmmixup.downstream import exact_match, find_metric, likelihood
from hf_lmmixup.pipeline import run
from hf_lmmixup.records import row_id
from hf_lmmixup.tiny_distiller import build_tiny_distiller


BATCH = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that has read nothing."""
    return str(build_tiny_distiller(tmp_path_factory.mktemp("model") / "tiny", ["Q: 1?\nA: one two three"]))


@pytest.fixture(scope="module")
def rows():
    raw = {"id": [f"{n:02d}" for n in range(40)], "prompt": [f"q{n}" for n in range(40)], "completion": ["a"] * 40}
    raw["score"] = [n % 6 for n in range(39)] + [None]
    made = {
        "id": ["d0", "d1", "d2", "04"],
        "prompt": ["x", "y", "z", "q4"],
        "completion": ["one two three " * 9] * 3 + ["a"],
    }
    made["origin"] = ["distilled"] * 3 + ["original"]
    test = Dataset.from_dict({"prompt": ["t0", "t1"], "completion": ["1", "2"]})
    return RunRows(Dataset.from_dict(raw), Dataset.from_dict(made), test)


def test_rows_of_each_arm(rows):
    prompts = {arm: arm_rows(rows, arm, seed=0)["prompt"][:] for arm in ARMS}
    assert prompts["full raw"] == rows.raw["prompt"][:]
    assert len(prompts["random subset"]) == 3 and set(prompts["random subset"]) < set(rows.raw["prompt"])
    assert prompts["random subset"] != arm_rows(rows, "random subset", seed=1)["prompt"][:]
    assert prompts["top-rated subset"] == ["q5", "q11", "q17"]  # the first by id of those with the best score
    assert prompts["distilled"] == ["x", "y", "z"]
    assert prompts["distilled + high"] == prompts["+ SFTMix"] == ["x", "y", "z", "q4"]
    assert 1 <= len(prompts["+ mosaic"]) <= 4
    with pytest.raises(ValueError, match="Unknown arm 'gold'"):
        arm_rows(rows, "gold", seed=0)
    with pytest.raises(ValueError, match="'distilled' has no row"):
        arm_rows(RunRows(rows.raw, rows.dataset.select([3]), rows.test), "distilled", seed=0)


class FakeTrainer:
    """Keeps what it was asked for; the model's folder says which arm it was."""

    def __init__(self):
        self.asked = []

    def __call__(self, method, recipe, overrides, folder):
        data = pq.read_table(f"{overrides['dataset_name']}/train.parquet")
        self.asked.append((folder.parent.name, method, overrides["max_steps"], len(data)))
        folder.mkdir()
        (folder / "config.json").write_text("{}")


def scored(model, rows):
    """A metric: distilled models are better by 0.5, whatever the seed; the second row is easier by 2."""
    name = Path(model).parent.name
    return [0.5 * name.startswith("distilled") + 2.0 * place + float(name[-1]) / 10 for place in range(len(rows))]


@pytest.fixture
def plan(model, tmp_path):
    (tmp_path / "sft.yaml").write_text(f"per_device_train_batch_size: {BATCH}\n")
    options = {"arms": ("full raw", "distilled", "distilled + high"), "metric": "test_comparison.scored"}
    return Comparison(model=model, recipe=tmp_path / "sft.yaml", folder=tmp_path / "out", **options)


def test_equal_steps_and_equal_tokens(plan, rows):
    trainer = FakeTrainer()
    entries = compare(plan, rows, trainer=trainer)
    assert len(trainer.asked) == 2 * 3 * 3
    steps = {name: steps for name, _, steps, _ in trainer.asked}
    assert {steps[f"{arm}-steps-0"] for arm in ("full-raw", "distilled", "distilled-high")} == {40 / BATCH}
    by_arm = {(entry["arm"], entry["budget"]): entry for entry in entries}
    tokens = [by_arm[arm, "tokens"]["tokens"] for arm in plan.arms]
    assert max(tokens) / min(tokens) < 1.1  # whole steps are all that is left of the difference
    assert steps["distilled-tokens-0"] < steps["full-raw-tokens-0"]  # its rows are longer
    assert [entry["seeds"] for entry in entries] == [3] * 6
    best = by_arm["distilled", "tokens"]
    assert (best["difference"], best["difference_low"], best["difference_high"]) == pytest.approx((0.5, 0.5, 0.5))
    assert best["low"] < best["mean"] < best["high"] and "difference" not in by_arm["full raw", "tokens"]


def test_tokens_behind_the_window_of_the_training_do_not_count(plan, rows):
    plan.recipe.write_text(f"per_device_train_batch_size: {BATCH}\nmax_length: 3\n")
    trainer = FakeTrainer()
    entries = compare(plan, rows, trainer=trainer)
    assert {steps for _, _, steps, _ in trainer.asked} == {40 / BATCH}  # every row, however long, is 3 tokens
    assert {entry["tokens"] for entry in entries} == {3 * 40}


def test_an_interrupted_comparison_goes_on_and_models_are_gone(plan, rows):
    first = FakeTrainer()
    entries = compare(plan, rows, trainer=first)
    assert not list(plan.folder.glob("*/model"))
    shutil.rmtree(plan.folder / "distilled-steps-1")
    again = FakeTrainer()
    assert compare(plan, rows, trainer=again) == entries
    assert [name for name, *_ in again.asked] == ["distilled-steps-1"]
    # other test rows are another comparison
    other = RunRows(rows.raw, rows.dataset, rows.test.select([0]))
    compare(plan, other, trainer=again)
    assert len(again.asked) == 1 + 18


def test_table_and_figure_show_the_difference(plan, rows):
    entries = compare(plan, rows, trainer=FakeTrainer())
    text = markdown(entries)
    assert text.count("## scored, equal") == 2 and "| +0.500 | +0.500 to +0.500 |" in text
    figures = arms({"arms": entries})
    assert [figure.title for figure in figures] == [
        "What models learn from it: scored, equal tokens",
        "What models learn from it: scored, equal steps",
    ]
    assert figures[0].rows[1][3:5] == ["+0.500", "0.500 to 0.500"]


WRONG = [
    ({"arms": ("gold",)}, "Unknown arm 'gold'"),
    ({"arms": ()}, "No arm is named. Expected some of"),
    ({"budgets": ()}, "No budget is named. Expected some of"),
    ({"budgets": ("time",)}, "Unknown budget 'time'"),
    ({"seeds": 0}, "seeds=0 must be at least 1"),
    ({"epochs": 0}, "epochs=0 above 0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[row[1] for row in WRONG])
def test_wrong_plans(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Comparison(model="m", recipe=tmp_path, folder=tmp_path, **options)


def test_metrics_by_name(model):
    rows = [{"prompt": "1?", "completion": "one"}, {"prompt": "1?", "completion": "one two three " * 2_000}]
    scores = likelihood(model, rows)
    assert -12 < scores[0] < 0 and math.isfinite(scores[1])  # an untrained model knows nothing; long rows are cut
    assert exact_match(model, rows[:1]) == [0.0]
    assert find_metric("rouge")[0] == "rouge" and find_metric("test_comparison.scored")[1] is not None
    with pytest.raises(ValueError, match="No metric 'accuracy'"):
        find_metric("accuracy")


def test_a_metric_of_the_current_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])  # as in a console script
    (tmp_path / "own_metric.py").write_text("def halves(model, rows):\n    return [0.5 for _ in rows]\n")
    title, metric = find_metric("own_metric.halves")
    assert (title, metric("m", [{}, {}])) == ("halves", [0.5, 0.5])
    (tmp_path / "broken_metric.py").write_text("import module_that_is_not_there\n")
    with pytest.raises(ValueError, match="'broken_metric.halves' .No module named 'module_that_is_not_there'"):
        find_metric("broken_metric.halves")


def test_no_arm_sees_a_test_row(finished_run, tmp_path):
    found = rows_of_run(finished_run)
    tested = set(found.test["prompt"][:])
    assert tested and not tested & set(found.raw["prompt"][:])
    assert not tested & set(found.dataset["prompt"][:])
    with pytest.raises(FileNotFoundError, match="is no finished run"):
        rows_of_run(tmp_path)


def test_no_arm_sees_what_was_made_of_a_test_row_or_a_duplicate_of_one(tmp_path):
    run(recipe(tmp_path), tools=tools())
    folder = tmp_path / "run"
    made = next(row for row in pq.read_table(folder / "dataset/data").to_pylist() if row["origin"] == "distilled")
    texts = {row_id(row["prompt"], row["completion"]): row for row in ROWS}
    duplicate, copy = ROWS[25], ROWS[26]
    merged = next(texts[row] for row in made["sources"] if row != made["id"])
    (tmp_path / "test.jsonl").write_text(f"{json.dumps(merged)}\n{json.dumps(duplicate)}")
    found = rows_of_run(folder, tmp_path / "test.jsonl")
    assert made["id"] not in found.dataset["id"][:]
    assert not {duplicate["prompt"], copy["prompt"]} & {*found.raw["prompt"], *found.dataset["prompt"]}
    assert len(found.test) == 2 and len(found.raw) == len(ROWS) - 1 - 3  # the row of an evaluation set is not raw
    (folder / "ledger.json").unlink()
    with pytest.raises(FileNotFoundError, match="is no finished run: there is no ledger.json"):
        rows_of_run(folder)


@pytest.mark.slow
def test_the_command_trains_a_tiny_model_on_every_arm(finished_run, model, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    (shard,) = (tmp_path / "run" / "dataset" / "data").iterdir()
    rows = pq.read_table(shard)  # so short a training distils nothing: half of the rows stand for distilled ones
    origins = pa.array(["distilled" if n % 2 else "original" for n in range(len(rows))])
    pq.write_table(rows.set_column(rows.schema.get_field_index("origin"), "origin", origins), shard)
    recipe = (REPOSITORY / "recipes" / "quickstart" / "sftmix.yaml").read_text().splitlines()
    plain = [line for line in recipe if not line.startswith(("reference", "mixup", "mosaic", "num_train", "output"))]
    (tmp_path / "sft.yaml").write_text("\n".join(plain))
    options = ["--recipe", tmp_path / "sft.yaml", "--seeds", "1", "--budget", "steps", "--epochs", "0.3"]
    told = lmmixup("compare", tmp_path / "run", "--model", model, *options)
    entries = json.loads((tmp_path / "run" / "comparison" / "comparison.json").read_text())
    assert [entry["arm"] for entry in entries] == list(ARMS), told.stderr
    assert "What models learn from it: likelihood, equal steps" in (tmp_path / "run" / "report.html").read_text()
