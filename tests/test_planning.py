"""A plan's ranges hold what the run then takes, and both stand side by side."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from borrowed_tools import raw_rows, tools
from conftest import invoked
from test_modes import TRAINING_FREE, recipe, write_rows

from hf_lmmixup.distilling import TRAIN
from hf_lmmixup.pipeline import run
from hf_lmmixup.planning import SPREAD, _Planner, count_rows, plan, thinned
from hf_lmmixup.preparation import Preparation
from hf_lmmixup.recipe import DistillerRecipe
from hf_lmmixup.run_directory import RunDirectory
from hf_lmmixup.stages import Stages


EXCELLENT = {"prompt": "What is an excellent thing, number", "completion": "This one."}


def rows(count):
    """A third of them good."""
    good = [{**EXCELLENT, "completion": f"This one, {number}."} for number in range(count // 3)]
    return [*raw_rows(range(count - len(good))), *good]


@pytest.mark.parametrize("distiller", [TRAINING_FREE, DistillerRecipe(mode="extractive")], ids=lambda one: one.mode)
def test_ranges_hold_what_the_run_takes(tmp_path, distiller):
    job = recipe(tmp_path, rows=rows(300), distiller=distiller)
    planned = {estimate.stage: estimate for estimate in plan(job, sample=60, tools=tools())}
    run(job, tools=tools())
    costs = {entry["stage"]: entry for entry in json.loads((tmp_path / "run/facts.json").read_text())["costs"]}
    for stage in ("load", "embed", "rate", "cluster", "rate again"):
        low, high = planned[stage].rows
        assert low <= costs[stage]["rows"] <= high, stage
    if distiller is TRAINING_FREE:
        low, high = planned["distil"].tokens
        assert low <= costs["distil"]["tokens"] <= high
        assert planned["distil"].money[0] <= costs["distil"]["money"] <= planned["distil"].money[1]
    for stage, any_file in {
        "embed": 0,
        "load": 2_000,
        "rate": 2_000,
        "cluster": 2_000,
    }.items():  # with what it starts with
        low, high = planned[stage].disk
        assert low <= costs[stage]["disk"] <= 1.2 * high + any_file, (stage, low, high, costs[stage]["disk"])


def test_training_steps_are_read_from_its_recipe(tmp_path):
    (tmp_path / "sft.yaml").write_text("max_steps: 10\n")
    for grpo, seconds in (
        ("max_steps: 2\n", (10 * 0.2 + 2 * 3.0 + 100 * 0.2, 10 * 3.0 + 2 * 30.0 + 100 * 3.0)),
        ("learning_rate: 1e-5\n", None),  # as many steps as there are rows
    ):
        (tmp_path / "grpo.yaml").write_text(grpo)
        trained = DistillerRecipe(cold_start="sft.yaml", grpo="grpo.yaml", reading_steps=100)
        job = recipe(tmp_path, rows=rows(30), distiller=trained, folder=tmp_path)
        [train] = [estimate for estimate in plan(job, tools=tools()) if estimate.stage == TRAIN.partition("_")[2]]
        assert train.seconds == (None if seconds is None else pytest.approx(seconds))


def test_known_rate_makes_the_time(tmp_path):
    job = recipe(tmp_path, rows=rows(30), distiller=TRAINING_FREE)
    slow, fast = (plan(job, tools=tools(), tokens_per_second=rate)[-2].seconds for rate in (10.0, 100.0))
    assert slow == pytest.approx([10 * value for value in fast])
    assert slow[1] / slow[0] > SPREAD[1] / SPREAD[0]


def test_rows_are_counted_without_reading_them(tmp_path):
    file = write_rows(tmp_path / "pile.jsonl", rows(30))
    assert count_rows(file) == 30
    assert count_rows("ada/pile") is None
    (estimate, *_) = plan(recipe(tmp_path, rows=rows(30), limit=20), tools=tools())
    assert estimate.rows == (20.0, 20.0)


@pytest.mark.parametrize(("count", "kept"), [(0, []), (3, [0, 1, 2]), (7, [0, 2, 4, 6]), (17, [0, 4, 8, 12, 16])])
def test_a_sample_is_spread_over_rows_that_nobody_has_counted(count, kept):
    assert thinned(iter(range(count)), 3) == (kept, count)


@pytest.mark.parametrize("scanned", [200_000, 20])
def test_a_file_that_is_one_array_is_sampled_and_counted_too(tmp_path, monkeypatch, scanned):
    monkeypatch.setattr("hf_lmmixup.planning.SCANNED", scanned)
    (tmp_path / "pile.json").write_text(json.dumps(rows(90)))
    job = replace(recipe(tmp_path, rows=[]), input=str(tmp_path / "pile.json"))
    with TemporaryDirectory() as folder:
        preparation = Preparation(job, Stages(RunDirectory(folder), print), tools())
        planner = _Planner(job, preparation, 15, None)
    assert planner.total == 90 and len(planner.rows) == 15
    assert len(set(planner.rows["prompt"][:])) > 5  # not the first ones alone


def test_command_keeps_the_plan_and_shows_it_beside_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lmmixup.preparation.Tools", tools)
    monkeypatch.setattr("hf_lmmixup.planning.Tools", tools)
    job = recipe(tmp_path, rows=rows(30))
    told = invoked("plan", "extractive", "-i", job.input, "-o", job.output)
    assert "rate again" in told and "Kept in" in told
    run(job, tools=tools())
    told = invoked("plan", "--run", job.output)
    assert "took" in told and "check took" in told
    facts = json.loads((tmp_path / "run/facts.json").read_text())
    assert [entry["stage"] for entry in facts["plan"]][0] == "load"
    kept = (Path(job.output) / "plan.json").read_bytes()
    told = invoked("plan", "extractive", "-i", job.input, "-o", job.output, "--limit", "10")
    assert "Not kept: a run has begun" in told and (Path(job.output) / "plan.json").read_bytes() == kept
    assert "one of the two" in invoked("plan", code=1)
    assert "neither a plan nor" in invoked("plan", "--run", tmp_path, code=1)
