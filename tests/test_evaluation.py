"""Scores of distillations: what is missing stays missing, malformed earns nothing, and tables say how many count."""

import json
import re
import sys
import tomllib

import pytest
from conftest import REPOSITORY
from stub_client import running_stub
from typer.testing import CliRunner

from hf_lmmixup import bundled, overlap
from hf_lmmixup.cli import app
from hf_lmmixup.downstream import find_metric
from hf_lmmixup.endpoint import EndpointModel
from hf_lmmixup.evaluation import markdown, rate_completions, score_completions, summarize
from hf_lmmixup.mixture_repository import Configuration, Origin, write_repository
from hf_lmmixup.overlap import TokenEncoder
from hf_lmmixup.prompts import format_completion
from hf_lmmixup.systems import evaluate_systems, find_systems, mixture_test, models_of, split_name


REFERENCE = "Q: What causes tides?\nA: The Moon pulls the sea; two tides come each day, 12 hours apart."
SOURCES = ["Q: tides?\nA: The moon pulls the sea.", "Q: how often\nA: 2 tides a day, each 12 hours apart."]
GOOD = format_completion("Both ask about tides.", REFERENCE)


def score(completions, **changes):
    rows = len(completions)
    columns = {"task_types": ["qa"] * rows, "references": [REFERENCE] * rows, "sources": [SOURCES] * rows}
    return score_completions(completions, **(columns | changes))


def test_the_reference_earns_everything_and_garbage_nothing():
    columns = score([GOOD, "tides", None], token_encoder=TokenEncoder())
    assert columns["format"] == [1.0, 0.0, 0.0]
    assert columns["alignment"] == [1.0, 0.0, 0.0]
    assert columns["rouge_l"] == [1.0, 0.0, 0.0]
    assert columns["token_similarity"] == pytest.approx([1.0, 0.0, 0.0], abs=1e-5)
    assert columns["coverage"][0] > 0.8 and columns["coverage"][1:] == [0.0, 0.0]
    assert columns["length"] == [len(REFERENCE), None, None]  # what is not there has no length
    assert columns["quality"] == [None] * 3  # no datastore is named


def test_what_cannot_be_judged_is_none_and_counts_in_no_mean():
    columns = score([GOOD, GOOD], references=[None, REFERENCE], sources=[None, SOURCES])
    assert columns["alignment"] == [None, 1.0] and columns["rouge_l"] == [None, 1.0]
    assert columns["coverage"][0] is None
    summary = summarize(columns, ["qa", "qa"], answered=[True, True])
    assert summary["means"]["rouge_l"] == 1.0 and summary["judged"]["rouge_l"] == 1
    assert summary["means"]["quality"] is None and summary["judged"]["quality"] == 0


MEANS = [  # values, mean, judged
    ([1.0, 0.0, None], 0.5, 2),
    ([None, None, None], None, 0),
    ([0.0, 0.0, 0.0], 0.0, 3),
]


@pytest.mark.parametrize(("values", "mean", "judged"), MEANS)
def test_means_by_hand(values, mean, judged):
    summary = summarize({"x": values}, ["qa", "para", "qa"], answered=[True, False, True])
    assert (summary["means"]["x"], summary["judged"]["x"]) == (mean, judged)
    assert (summary["rows"], summary["answered"]) == (3, 2)
    assert list(summary["task_types"]) == ["qa", "para"]
    assert summary["task_types"]["para"]["means"]["x"] == values[1]


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="references has 1 entries for 2 completions"):
        score([GOOD, GOOD], references=[REFERENCE])


def test_a_text_is_no_list_of_weak_texts():
    with pytest.raises(ValueError, match="sources has a text where a list of texts is needed"):
        score([GOOD], sources=[SOURCES[0]])


def test_the_table_says_how_many_were_judged():
    entry = summarize({"format": [1.0, 1.0], "rouge_l": [0.5, None]}, ["qa", "qa"], answered=[True, True])
    text = markdown({"data": "test", "rows": 3, "systems": [{"system": "a|b", **entry}]})
    assert "| a/b | 2/2 | 1.000 | 0.500 (1) |" in text.splitlines()
    assert "a/b writes qa only" in text


def test_a_chat_model_rates_each_answer_once(tmp_path):
    with running_stub() as stub:
        model = EndpointModel("rater", stub.url)
        kinds = ["qa", "qa", "qa"]
        first = rate_completions([GOOD, "malformed", GOOD], kinds, model, tmp_path)
        assert first[1] is None and first[0] == first[2] and 0 <= first[0] <= 5
        asked = stub.stats()["requests"]
        assert asked == 1
        assert rate_completions([GOOD, None, GOOD], kinds, model, tmp_path) == first
        assert stub.stats()["requests"] == asked


@pytest.fixture
def run(tmp_path):
    """A run directory of which only the models after the trainings are left."""
    for name in ("cold_start", "grpo"):
        (tmp_path / "run" / "training" / name).mkdir(parents=True)
    facts = {"models": ["untrained", "cold start", "GRPO"], "recipe": {"distiller": {"model": "ada/base"}}}
    (tmp_path / "run" / "facts.json").write_text(json.dumps(facts))
    (tmp_path / "run" / "ledger.json").write_text("{}")
    return tmp_path / "run"


def test_a_run_stands_for_all_of_its_models(run):
    found = find_systems([str(run), "free=ada/instruct", "ada/other", "served@http://127.0.0.1:1/v1"])
    assert found == {
        "untrained": "ada/base",
        "cold start": str(run / "training" / "cold_start"),
        "GRPO": str(run / "training" / "grpo"),
        "extractive": "extractive",
        "reference": "reference",
        "free": "ada/instruct",
        "other": "ada/other",
        "served": "served@http://127.0.0.1:1/v1",
    }


def test_a_run_whose_trainings_were_deleted_still_has_its_distiller(run):
    for name in ("cold_start", "grpo"):
        (run / "training" / name).rmdir()
    (run / "distiller").mkdir()
    assert models_of(run) == {"untrained": "ada/base", "distiller": str(run / "distiller")}


def test_two_systems_of_one_name_are_refused():
    with pytest.raises(ValueError, match="Two systems are called 'base'. Name them one by one, as in a=MODEL b=MODEL"):
        find_systems(["ada/base", "bob/base"])


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path):
    (tmp_path / "lr=1e-4").mkdir()
    model = str(tmp_path / "lr=1e-4")
    assert find_systems([model, f"a={model}"]) == {"lr=1e-4": model, "a": model}


def test_a_run_under_a_name_is_refused(run):
    with pytest.raises(ValueError, match="is a run directory, and free stands for one model. Name one of its models"):
        find_systems([f"free={run}"])


@pytest.mark.parametrize("words", [["evaluate", "RUN/none", "--limit", "5"], ["compare", "RUN", "--model", "none"]])
def test_a_model_that_is_not_there_is_one_clear_message(words, finished_run, tmp_path):
    words = [word.replace("RUN", str(finished_run)) for word in words]
    told = CliRunner().invoke(app, [*words, "--output", str(tmp_path)])
    assert told.exit_code == 1, told.output
    assert f"No model can be read from '{words[1] if words[0] == 'evaluate' else 'none'}'" in told.output


def test_few_rows_are_spread_over_the_task_types():
    kinds = [row["task_type"] for row in mixture_test(limit=7)]
    assert sorted(kinds) == ["cs", "mcq", "mcq", "para", "qa", "qa", "tfq"]
    assert mixture_test(limit=10_000) == mixture_test()
    with pytest.raises(FileNotFoundError, match="Expected 'bundled', 'hub'"):
        mixture_test("nowhere")


def test_a_mixture_of_ones_own_is_evaluated_on_too(tmp_path):
    parts = [bundled.mixture_clusters("test")[start : start + 7] for start in (0, 7)]
    for clusters in parts:  # the second time at the same place with other rows
        write_repository(
            tmp_path / "own",
            [Configuration("grpo", "grpo", {"test": clusters})],
            title="own",
            description="",
            origins=[Origin("here", "mit", 1)],
        )
        rows = mixture_test(str(tmp_path / "own"))
        assert [row["reference"] for row in rows] == [cluster["target"] for cluster in clusters]
    assert split_name(str(tmp_path / "own")) == "own, test split"
    with pytest.raises(FileNotFoundError, match="No file of MIXTURE in"):
        mixture_test(str(tmp_path))
    empty = [Configuration("sft", "sft", {"test": parts[0]}), Configuration("grpo", "grpo", {"test": []})]
    write_repository(tmp_path / "none", empty, title="", description="", origins=[])
    with pytest.raises(ValueError, match="The test split of .* has no row"):
        mixture_test(str(tmp_path / "none"))


def test_extractive_mode_and_references_without_any_model(tmp_path):
    systems = {"extractive": "extractive", "reference": "reference"}
    environment = {"HF_LMMIXUP_DATASTORE": ""}
    results = evaluate_systems(systems, mixture_test(limit=10), data="t", folder=tmp_path, environment=environment)
    extractive, reference = results["systems"]
    assert set(extractive["task_types"]) == {"qa", "para"} and extractive["rows"] == 4
    assert reference["rows"] == 10
    assert reference["means"]["format"] == reference["means"]["alignment"] == reference["means"]["rouge_l"] == 1.0
    assert extractive["means"]["format"] == 1.0 and 0.1 < extractive["means"]["rouge_l"] < 1.0
    lines = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert len(lines) == 14 and {line["system"] for line in lines} == set(systems)


@pytest.fixture
def no_rouge(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    overlap._scorer.cache_clear()
    yield
    overlap._scorer.cache_clear()


def test_what_is_not_installed_is_said_before_anything_is_written(no_rouge, tmp_path):
    told = CliRunner().invoke(app, ["evaluate", "reference", "--limit", "2", "--output", str(tmp_path / "out")])
    assert told.exit_code == 1 and "hf-lmmixup[report]" in told.output
    assert not (tmp_path / "out").exists()
    with pytest.raises(ImportError, match="rouge-score"):  # before three models are fine-tuned
        find_metric("rouge")


def test_names_may_look_like_markup(tmp_path):
    out = tmp_path / "out[/]x"
    told = CliRunner().invoke(app, ["evaluate", "a[/b]=reference", "--limit", "2", "--output", str(out)])
    assert told.exit_code == 0, told.output
    assert "out[/]x/evaluation.md" in told.output and "a[/b]" in told.output


def test_the_demo_installs_what_evaluating_needs():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    demo = re.search(r'-e "\.\[(offline[\w,]*)\]"', (REPOSITORY / "Makefile").read_text())[1]
    needed = [requirement for extra in demo.split(",") for requirement in extras[extra]]
    assert any(requirement.startswith("rouge-score") for requirement in needed)
    for page in ("README.md", "docs/evaluating.md", "docs/publishing.md"):
        text = (REPOSITORY / page).read_text()
        assert f"hf-lmmixup[{demo}]" in text or all(f"`{extra}`" in text for extra in demo.split(",")), page


def test_a_rater_that_thinks_first_may_write_longer_and_a_served_system_take_its_time(tmp_path, monkeypatch):
    made = []

    class Noted(EndpointModel):
        def __init__(self, model, base_url, **options):
            super().__init__(model, base_url, **options)
            made.append((self.name, self.timeout, self.body["max_tokens"]))

    monkeypatch.setattr("hf_lmmixup.endpoint.EndpointModel", Noted)
    with running_stub() as stub:
        words = ["evaluate", f"a=slow@{stub.url}", "--limit", "1", "--datastore", "bundled", "--output", str(tmp_path)]
        words += ["--rater", f"rater@{stub.url}", "--rater-max-new-tokens", "4096", "--max-new-tokens", "512"]
        assert CliRunner().invoke(app, words).exit_code == 0
    assert sorted(made) == [("rater", 60.0, 4096), ("slow", 600.0, 512)]


def test_addresses_that_data_may_not_go_to_are_refused_before_anything_is_asked(tmp_path):
    words = ["evaluate", "reference", "a=m@http://10.255.255.1/v1", "--limit", "1", "--output", str(tmp_path / "out")]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 1 and "unencrypted to another machine" in " ".join(told.output.split())
    assert not (tmp_path / "out").exists()


def test_the_command_rates_by_an_endpoint_and_writes_its_tables(tmp_path):
    with running_stub() as stub:
        words = ["evaluate", "reference", "extractive", "--limit", "5", "--datastore", "bundled"]
        told = CliRunner().invoke(app, [*words, "--rater", f"rater@{stub.url}", "--output", str(tmp_path / "out")])
        assert told.exit_code == 0, told.output
        assert stub.stats()["requests"] == 5 + 2  # the extractive mode writes two of the five
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [system["judged"]["rating"] for system in results["systems"]] == [5, 2]
    assert all(0 <= system["means"]["rating"] <= 5 for system in results["systems"])
    table = (tmp_path / "out" / "evaluation.md").read_text()
    assert "| reference | 5/5 | 1.000 | 1.000 |" in table and "ROUGE-L" in table
    wrong = CliRunner().invoke(app, ["evaluate", "reference", "--rater", "rater", "--output", str(tmp_path)])
    assert wrong.exit_code == 1 and "must be MODEL@URL" in " ".join(wrong.output.split())
