"""Public benchmarks: our own task, results as cards show them, and lm-eval itself with a tiny model (slow)."""

import json
import re
import subprocess
import sys
import tomllib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import REPOSITORY, lmmixup
from typer.testing import CliRunner

from hf_lmmixup.artifacts import distiller_publication, evaluation_results
from hf_lmmixup.card_markup import escape
from hf_lmmixup.cli import app
from hf_lmmixup.lm_eval_tasks.questions import final, load, process_results
from hf_lmmixup.public_benchmarks import (
    BENCHMARKS,
    EVAL_EXTRA,
    PAPER,
    entry_of,
    merge_evaluations,
    store_beside,
    tasks_path,
)
from hf_lmmixup.tiny_distiller import build_tiny_distiller


FINALS = [  # answer, what counts of it
    ("4 * 9 = 36. 36 - 7 = 29. #### 29", "29"),
    ("So the answer is 1,024.", "1024"),
    ("It is 12.50 euros", "12.50"),
    ("Half of -8 is -4.", "-4"),
    ("#### 7 jars of 12", "7"),  # behind the mark the first number counts
    ("Lake Baikal.", "lake baikal"),
    ("", ""),
]


@pytest.mark.parametrize(("answer", "counts"), FINALS, ids=[row[1] or "nothing" for row in FINALS])
def test_what_counts_of_an_answer(answer, counts):
    assert final(answer) == counts


def test_scores_of_replies():
    doc = {"question": "?", "answer": "36 - 7 = 29. #### 29"}
    assert process_results(doc, [" 36 less 7 makes 29."]) == {"exact_match": 1.0}
    assert process_results(doc, ["29 or 30"]) == {"exact_match": 0.0}


def test_our_own_questions_and_any_file(tmp_path):
    rows = load()
    assert (len(rows["train"]), len(rows["test"])) == (2, 8)
    assert all(final(row["answer"]).isdigit() for split in rows.values() for row in split)
    assert not set(rows["train"]["question"]) & set(rows["test"]["question"])
    pq.write_table(pa.table({"question": ["a?", "b?", "c?"], "answer": ["1", "2", "3"]}), tmp_path / "q.parquet")
    assert load(str(tmp_path / "q.parquet"))["test"].to_list() == [{"question": "c?", "answer": "3"}]
    (tmp_path / "q.jsonl").write_text('{"instruction": "a", "output": "1"}\n' * 2)
    with pytest.raises(ValueError, match="has 1 usable rows; the task needs more than 2"):
        load(str(tmp_path / "q.jsonl"))


def test_results_of_lm_eval_become_entries_of_the_card():
    groups = {"results": {"mmlu": {"acc,none": 0.24567, "acc_stderr,none": 0.0036, "alias": "mmlu"}, "mmlu_stem": {}}}
    entry = entry_of("mmlu", groups | {"n-shot": {"mmlu_stem": 0, "mmlu_other": 0}})
    assert (entry["value"], entry["stderr"], entry["dataset_id"]) == (24.57, 0.36, "cais/mmlu")
    assert entry["notes"].endswith("mmlu, 0-shot")
    shots = {"results": {"gsm8k_cot": {"exact_match,flexible-extract": 0.5}}, "n-shot": {"gsm8k_cot": 8}}
    entry = entry_of("gsm8k", shots)  # shown on the Hub under the name that the dataset gives its task
    assert (entry["dataset_id"], entry["task_id"]) == ("openai/gsm8k", "gsm8k")
    assert entry["notes"].endswith("gsm8k_cot, 8-shot")
    tag = {"results": {"tydiqa_goldp_en": {"f1,none": 0.5}, "tydiqa_goldp_fi": {"f1,none": 0.25}}}
    entry = entry_of("tydiqa", tag, limit=5)
    assert entry["value"] == 37.5 and "stderr" not in entry  # the mean over the languages
    assert entry["notes"].endswith("only 5 rows of each task")
    with pytest.raises(ValueError, match="gave no exact_match,get-answer"):
        entry_of("bbh", {"results": {"bbh_cot_fewshot": {"exact_match,none": 0.1}}})


def test_a_later_result_replaces_an_earlier_one():
    old = [{"dataset_id": "cais/mmlu", "task_id": "mmlu", "value": 1.0}]
    new = [
        {"dataset_id": "cais/mmlu", "task_id": "mmlu", "value": 2.0},
        {"dataset_id": None, "task_id": "q", "value": 3},
    ]
    assert [entry["value"] for entry in merge_evaluations(old, new)] == [2.0, 3]


def test_results_beside_a_model_are_in_its_card(tmp_path):
    from safetensors.numpy import save_file

    save_file({}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    entry = entry_of("mmlu", {"results": {"mmlu": {"acc,none": 0.25}}})
    own = entry_of("questions", {"results": {"lmmixup_questions": {"exact_match,none": 0.5}}})
    store_beside(tmp_path, [entry, own])
    files = {file.name: file.content for file in distiller_publication(tmp_path, "a/b", licenses=("mit",)).files}
    assert "evaluations.json" not in files
    results = yaml.safe_load(files[".eval_results/lmmixup.yaml"])
    assert [result["dataset"] for result in results] == [{"id": "cais/mmlu", "task_id": "mmlu"}]
    card = files["README.md"].decode()
    index = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    assert {(result["dataset"]["name"], result["metrics"][0]["value"]) for result in index} == {
        ("MMLU", 25.0),
        ("Questions", 50.0),
    }
    assert f"| MMLU | accuracy | 25.0 | {escape(entry['notes'])} |" in card
    assert evaluation_results([own]) == ""


@pytest.mark.parametrize("fails", ["plotly", "folder"])
def test_results_outlive_what_fails_behind_them(fails, tmp_path, monkeypatch):
    """The page asks for `hf-lmmixup[eval,train]`, in which there is no plotly; a benchmark takes hours."""
    entry = entry_of("mmlu", {"results": {"mmlu": {"acc,none": 0.25}}})
    monkeypatch.setattr("hf_lmmixup.public_benchmarks.run_benchmarks", lambda *_, **__: [entry])
    (tmp_path / "ledger.json").write_text("{}")
    books = {"rows_in": 1, "kept": 1, "merged": 0, "dropped": {}}
    facts = json.dumps({"ledger": books, "rows": {"in": 1, "out": 1}})
    (tmp_path / "facts.json").write_text(facts if fails == "plotly" else "no JSON")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    told = CliRunner().invoke(app, ["benchmark", str(tmp_path), "-o", str(tmp_path / "new" / "out.json")])
    assert "25.00" in told.output and json.loads((tmp_path / "new" / "out.json").read_text()) == [entry]
    if fails == "plotly":
        assert told.exit_code == 0, told.output
        assert json.loads((tmp_path / "facts.json").read_text())["evaluations"] == [entry]


def test_a_result_on_a_few_rows_is_none_of_the_benchmark(tmp_path):
    from safetensors.numpy import save_file

    save_file({}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    part = entry_of("mmlu", {"results": {"mmlu": {"acc,none": 0.5}}}, limit=2)
    store_beside(tmp_path, [part])
    files = {file.name: file.content for file in distiller_publication(tmp_path, "a/b", licenses=("mit",)).files}
    card = files["README.md"].decode()
    assert ".eval_results/lmmixup.yaml" not in files and "model-index" not in yaml.safe_load(card.split("---\n")[1])
    assert "| MMLU | accuracy | 50.0 |" in card and "only 2 rows of each task |" in card
    whole = entry_of("mmlu", {"results": {"mmlu": {"acc,none": 0.25}}})
    assert merge_evaluations([part], [whole]) == merge_evaluations([whole], [part]) == [whole]


def test_the_five_of_the_paper():
    assert [BENCHMARKS[name].title for name in PAPER] == ["MMLU", "TruthfulQA", "GSM8K", "BBH", "TyDiQA"]


def test_the_command_names_the_folder_of_our_tasks():
    told = lmmixup("benchmark-tasks")
    assert told.stdout.strip() == str(tasks_path())
    assert yaml.safe_load((tasks_path() / "questions.yaml").read_text().replace("!function ", ""))["num_fewshot"] == 2


def test_pages_and_requirements_agree_with_the_code():
    page = (REPOSITORY / "docs" / "evaluating.md").read_text()
    install = re.search(r'pip install "[^"]+"', EVAL_EXTRA)[0]
    assert install in page.partition("## Benchmarks")[2].partition("## ")[0]
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "lm-eval>=0.4.10" in extras["eval"]  # the first with `lm_eval run`, which our help names


def test_no_benchmark_is_one_clear_message(tmp_path):
    told = lmmixup("benchmark", tmp_path, "--tasks", ",", check=False)
    assert told.returncode == 1 and "No benchmark is named. Expected some of ['mmlu'" in told.stderr


def test_an_unknown_benchmark_is_one_clear_message(tmp_path):
    told = lmmixup("benchmark", tmp_path, "--tasks", "mmlu,arc", check=False)
    assert told.returncode == 1 and "Unknown benchmark 'arc'" in told.stderr and "Traceback" not in told.stderr


@pytest.mark.slow
def test_lm_eval_runs_our_task_offline_with_a_tiny_model(tmp_path):
    build_tiny_distiller(tmp_path / "model", ["Question: 1?\nAnswer: 1"])
    told = lmmixup("benchmark", tmp_path / "model", "--tasks", "questions", "--batch-size", "4", "--device", "cpu")
    assert "Questions" in told.stderr, told.stderr
    (entry,) = json.loads((tmp_path / "model" / "evaluations.json").read_text())
    assert entry["value"] == 0.0 and "2-shot" in entry["notes"]
    # the same task by lm-eval's own command, on a file of one's own
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "{n}?", "answer": "{n}"}}\n' for n in range(5)))
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "4"]
    command += ["--model_args", f"pretrained={tmp_path / 'model'}", "--include_path", str(tasks_path())]
    command += ["--tasks", "lmmixup_questions", "--metadata", json.dumps({"data": str(tmp_path / "rows.jsonl")})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "lmmixup_questions" in done.stdout, done.stderr[-2000:]
