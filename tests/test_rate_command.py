"""`lmmixup rate` and `lmmixup datastore`: what is written, what is said, exit codes, and going on after a stop."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from hashing_encoder import HashingEncoder
from stub_client import running_stub

from hf_lmmixup import raters
from hf_lmmixup.chat_model import ChatReply
from hf_lmmixup.cli import app
from hf_lmmixup.datastore import ScoredDatastore
from hf_lmmixup.rating_prompt import FOUR_AXES
from hf_lmmixup.records import RATED, RATING_AXES, row_id


CANARY = "odd:canary/0123456789"  # looks like no service's token, so only its value gives it away


@pytest.fixture(scope="module")
def server():
    with running_stub() as stub:
        yield stub


@pytest.fixture
def stub(server, monkeypatch):
    server.reset(retry_after=0.05)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    return server


@pytest.fixture
def said(capsys):
    """Run `lmmixup`; its exit code and what it says, in one line."""

    def run(*arguments):
        try:
            app(list(map(str, arguments)))
        except SystemExit as end:
            told = capsys.readouterr()
            return end.code or 0, " ".join((told.err + told.out).split())

    return run


def pile(folder, count=24, name="pile.jsonl"):
    pairs = [(f"question {number}?", "word " * (1 + number * 7 % 40) + f"row {number}.") for number in range(count)]
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in pairs]
    (folder / name).write_text("\n".join(lines))
    return folder / name, [row_id(*pair) for pair in pairs]


def rows_of(path):
    return pq.read_table(path).to_pylist()


# ---- rate ----


def test_a_server_rates_and_the_same_command_asks_nothing_twice(stub, said, tmp_path):
    source, ids = pile(tmp_path)
    command = ["rate", source, "-o", tmp_path / "rated.parquet", "--endpoint", stub.url, "--model", "rater-8b"]
    code, told = said(*command)
    assert code == 0 and f"Wrote 24 rows to {tmp_path}/rated.parquet." in told
    rows, once = rows_of(tmp_path / "rated.parquet"), (tmp_path / "rated.parquet").read_bytes()
    assert [row["id"] for row in rows] == ids and list(rows[0]) == list(RATED)
    for row in rows:
        assert row["score"] == min(9, max(4, row["rating"]["overall"])) - 4 and row["rating_error"] is None
    assert len({row["score"] for row in rows}) > 2
    assert said(*command)[0] == 0
    assert stub.stats()["requests"] == 24 and (tmp_path / "rated.parquet").read_bytes() == once


def test_every_column_of_an_earlier_stage_is_kept(stub, said, tmp_path):
    source, ids = pile(tmp_path, 4)
    first = ["--endpoint", stub.url, "--model", "a"]
    assert said("rate", source, "-o", tmp_path / "one.parquet", *first)[0] == 0
    table = pq.read_table(tmp_path / "one.parquet")
    pq.write_table(table.append_column("cluster_id", [[7, 7, 8, 9]]), tmp_path / "more.parquet")
    code, _ = said("rate", tmp_path / "more.parquet", "-o", tmp_path / "two.jsonl", *first, "--limit", 3)
    lines = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert code == 0 and [(line["id"], line["cluster_id"]) for line in lines] == list(
        zip(ids, [7, 7, 8], strict=False)
    )


STOPPED = [
    # kind of fault, options, exit code, what is said, whether an output is there
    ("401", [], 3, "stopped answering: 401: the key is refused", False),
    ("quota", [], 3, "stopped answering", False),
    ("refusal", [], 4, "24 of 24 rows got no score; 5% may", True),
    ("refusal", ["--max-rejects", "1"], 0, "none: refusal", True),
]


@pytest.mark.parametrize(("kind", "options", "code", "message", "written"), STOPPED)
def test_exit_codes_and_the_key_is_nowhere(stub, said, tmp_path, kind, options, code, message, written):
    stub.fault(kind, times=10**6)
    output = tmp_path / "rated.parquet"
    command = ["rate", pile(tmp_path)[0], "-o", output, "--endpoint", stub.url, "--model", "m", *options]
    found, told = said(*command)
    assert (found, message in told) == (code, True), told
    assert output.exists() == written
    if written:
        assert {(row["score"], row["rating_error"]) for row in rows_of(output)} == {(None, "refusal")}
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert CANARY not in told and not any(CANARY.encode() in content for content in files)


def test_a_changed_setting_is_refused_by_name(stub, said, tmp_path):
    command = ["rate", pile(tmp_path)[0], "-o", tmp_path / "rated.parquet", "--endpoint", stub.url]
    assert said(*command, "--model", "rater-8b")[0] == 0
    code, told = said(*command, "--model", "rater-70b")
    assert code == 1 and "model was 'rater-8b' and is 'rater-70b'" in told
    code, told = said(*command, "--model", "rater-8b", "--limit", "20")
    assert code == 1 and "input was" in told


def test_a_model_that_is_always_cut_is_stopped_and_asked_again_with_more_tokens(stub, said, tmp_path):
    command = ["rate", pile(tmp_path, 60)[0], "-o", tmp_path / "rated.parquet", "--endpoint", stub.url, "--model", "m"]
    stub.fault("cut", times=10**6)
    code, told = said(*command)
    assert code == 3 and "most often: reply cut at the token limit. Allow longer replies (--max-new-tokens)" in told
    assert 96 <= stub.stats()["requests"] <= 3 * (32 + 16) and not (tmp_path / "rated.parquet").exists()
    stub.reset()
    assert said(*command, "--max-new-tokens", "2048")[0] == 0
    assert stub.stats()["requests"] == 60
    code, told = said(*command)
    assert code == 1 and "max_tokens was 2048 and is 256" in told


def test_several_raters_are_combined_and_compared(stub, said, tmp_path):
    output = tmp_path / "rated.parquet"
    models = ["--model", "a", "--model", "b", "--model", "c"]
    code, told = said("rate", pile(tmp_path)[0], "-o", output, "--endpoint", stub.url, *models)
    assert code == 0 and "Raters 1 and 3: 100% equal scores" in told  # the stub judges by the text alone
    assert stub.stats()["requests"] == 3 * 24
    assert all(row["score"] == min(9, max(4, row["rating"]["overall"])) - 4 for row in rows_of(output))


def test_a_second_rater_comes_later_and_the_first_is_not_asked_again(stub, said, tmp_path):
    output = tmp_path / "rated.parquet"
    command = ["rate", pile(tmp_path)[0], "-o", output, "--endpoint", stub.url, "--model", "a"]
    assert said(*command)[0] == 0 and said(*command, "--model", "b")[0] == 0
    assert stub.stats()["requests"] == 2 * 24
    code, told = said(*command, "--model", "c")
    assert code == 1 and "model was 'b' and is 'c'" in told and stub.stats()["requests"] == 2 * 24


class Answering:
    """A model with one reply to everything, or one that refuses everything."""

    settings = {}

    def __init__(self, name, refuses):
        self.name, self.refuses = name, refuses

    def replies(self, requests, stop=None):
        for request in requests:
            text = json.dumps(dict.fromkeys(RATING_AXES, 7))
            yield ChatReply(request.key, None, "refusal") if self.refuses else ChatReply(request.key, text)


def test_a_rater_that_refuses_all_rows_does_not_take_the_others_ratings_along(said, tmp_path, monkeypatch):
    def named(names, **_):
        return [(Answering(name, name == "prude"), FOUR_AXES) for name in names]

    monkeypatch.setattr(raters, "named", named)
    output = tmp_path / "rated.parquet"
    models = ["--model", "a", "--model", "prude", "--model", "b"]
    code, told = said("rate", pile(tmp_path)[0], "-o", output, *models)
    assert code == 0 and {row["score"] for row in rows_of(output)} == {3}
    assert "Raters 1 and 2: No row was rated by both raters" in told and "Raters 1 and 3: 100% equal" in told


def test_ctrl_c_pays_nothing_twice_and_the_same_command_goes_on(stub, said, tmp_path):
    source, _ = pile(tmp_path, 300)
    settings = ["--endpoint", stub.url, "--model", "m", "--concurrency", "8"]
    assert said("rate", source, "-o", tmp_path / "whole.parquet", *settings)[0] == 0
    stub.reset(latency=0.05)
    output = tmp_path / "rated.parquet"
    command = [sys.executable, "-m", "hf_lmmixup.cli", "rate", source, "-o", output, *settings]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        journal, deadline = tmp_path / "rated.parquet.journal" / "ratings.journal", time.monotonic() + 60
        while not journal.exists() or journal.stat().st_size < 2000:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
    assert process.returncode == 130 and "The same command goes on from here." in told and not output.exists()
    assert stub.stats()["requests"] < 300
    assert said(*command[3:])[0] == 0
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert stub.stats()["paid_twice"] == 0


def test_a_local_model_is_asked_for_one_digit(said, tmp_path, monkeypatch):
    class Digits:
        def __init__(self, name):
            self.name, self.settings = name, {"model": name}

        def replies(self, requests, stop=None):
            for request in requests:
                number = int(request.messages[-1]["content"].split("row ")[1][0])
                yield ChatReply(request.key, json.dumps({"expected": 1.0 + number, "mass": 0.9 if number else 0.1}))

    monkeypatch.setattr(raters, "DigitModel", Digits)
    output = tmp_path / "rated.parquet"
    code, told = said("rate", pile(tmp_path, 9)[0], "-o", output, "--model", "Qwen/Qwen2.5-1.5B-Instruct")
    assert code == 4 and "1 of 9 rows got no score; 5% may" in told
    assert [row["score"] for row in rows_of(output)] == [None, 0, 0, 0, 1, 2, 3, 4, 5]
    assert {row["rating"] for row in rows_of(output)} == {None}


@pytest.fixture
def hashing(monkeypatch):
    encoder = HashingEncoder()
    monkeypatch.setattr(raters, "load_encoder", lambda name=None, revision=None: encoder)
    monkeypatch.setattr("hf_lmmixup.encoder.load_encoder", lambda name=None, revision=None: encoder)
    return encoder


def test_a_datastore_rates(said, tmp_path, hashing):
    texts = [{"prompt": f"word row {n}", "completion": "word row " * n, "score": 5 if n > 9 else 0} for n in range(20)]
    (tmp_path / "scored.jsonl").write_text("\n".join(map(json.dumps, texts)))
    assert said("datastore", "build", tmp_path / "scored.jsonl", "-o", tmp_path / "store")[0] == 0
    output = tmp_path / "rated.parquet"
    code, _ = said("rate", pile(tmp_path)[0], "-o", output, "--datastore", tmp_path / "store")
    assert code == 0 and {row["rating"] for row in rows_of(output)} == {None}
    assert {row["score"] for row in rows_of(output)} <= set(range(6))
    assert not (tmp_path / "rated.parquet.journal").exists()  # nothing was paid for


def test_scores_are_corrected_by_their_neighbors(stub, said, tmp_path, hashing):
    output = tmp_path / "rated.parquet"
    command = ["rate", pile(tmp_path, 60)[0], "-o", output, "--endpoint", stub.url, "--model", "m", "--correct"]
    code, told = said(*command)
    rows = rows_of(output)
    changed = [row for row in rows if row["score"] != row["raw_score"]]
    assert code == 0 and f"{len(changed)} scores corrected" in told and "score_confidence" in rows[0]
    for row in rows:
        assert row["raw_score"] == min(9, max(4, row["rating"]["overall"])) - 4 and 0 <= row["score_confidence"] <= 1


REFUSED = [
    # arguments after INPUT and -o OUTPUT, exit code, what is said
    (["--datastore", "bundled", "--model", "m"], 1, "Name who rates"),
    ([], 1, "Name who rates"),
    (["--datastore", "bundled", "--endpoint", "https://host/v1"], 1, "asks no server"),
    (["--datastore", "bundled", "--rubric", "axes"], 1, "does not go with --datastore"),
    (["--datastore", "bundled", "--encoder", "a/b"], 1, "--encoder is for --correct, which is not given"),
    (["--model", "m", "--endpoint", "http://example.com/v1"], 1, "unencrypted to another machine"),
    (["--model", "m", "--endpoint", f"https://{CANARY.replace(':', '@')}/v1"], 1, "holds a credential"),
    (["--model", "m", "--engine", "tensorrt"], 1, "Unknown engine 'tensorrt'. Expected one of"),
    (["--model", "m", "--rubric", "stars"], 1, "Unknown rubric 'stars'. Expected one of"),
    (["--model", "m", "--rubric", "digit", "--endpoint", "https://host/v1"], 1, "on this machine"),
    (["--model", "m", "--endpoint", "https://host/v1", "--task-type", "poem"], 1, "Unknown task type 'poem'"),
    (["--model", "m", "--concurrency", "0"], 2, "greater than or equal to"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_cannot_start_is_one_clear_message(said, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    found, told = said("rate", pile(tmp_path)[0], "-o", tmp_path / "rated.parquet", *arguments)
    assert (found, message in told, CANARY in told) == (code, True, False), told
    assert not (tmp_path / "rated.parquet").exists()


FILES = [  # input, output, what is said
    ("pile.jsonl", "rated.csv", "ends in '.csv'. Accepted outputs: .parquet, .jsonl"),
    ("nothing.parquet", "rated.parquet", "No file at"),
    ("empty.jsonl", "rated.parquet", "is empty"),
    ("broken.parquet", "rated.parquet", "is not a Parquet file"),
]


@pytest.mark.parametrize(("source", "output", "message"), FILES)
def test_files_that_are_not_what_they_seem(said, tmp_path, source, output, message):
    pile(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.parquet").write_text("PAR1")
    code, told = said("rate", tmp_path / source, "-o", tmp_path / output, "--datastore", "bundled")
    assert (code, message in told) == (1, True), told


# ---- datastore ----


def test_a_datastore_is_built_from_rated_rows_and_shows_how_well_it_judges(said, tmp_path, hashing):
    rows = []
    for number in range(120):
        good = number % 2
        words = " ".join(f"word{(number * 7 + place) % 50}" for place in range(30 if good else 5))
        pair = {"prompt": f"subject{number} why", "completion": f"{words}."}
        rows.append(pair if number % 3 else {"text": f"Q: {pair['prompt']}\nA: {pair['completion']}"})
        rows[-1] |= {"score": 5 if good else 1, "task_type": "cs" if number >= 100 else None}
    rows += [{"prompt": "a", "completion": "b", "score": None}, {"text": "x", "score": 7}, {"score": 3}]
    (tmp_path / "rated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, told = said("datastore", "build", tmp_path / "rated.jsonl", "-o", tmp_path / "store")
    assert code == 0 and "1 rows left out: no score" in told and "1 rows left out: the score is no whole" in told
    store = ScoredDatastore.load(tmp_path / "store")
    assert len(store) == 120 and sorted(store.transitions) == ["cs", "qa"]
    code, told = said("datastore", "show", tmp_path / "store")
    assert code == 0 and "120 rows" in told and "Encoder: hashing, 64 dimensions." in told
    for judge in ("head", "neighbors"):
        figures = [f"{store.report[judge][name]:.3f}" for name in ("auc", "spearman", "calibration_error")]
        assert all(figure in told for figure in figures)
    assert "linear head (default)" in told and np.isfinite(store.report["head"]["auc"])


def test_the_commands_of_the_page_about_quality(said, tmp_path, hashing, monkeypatch):
    page = (REPOSITORY / "docs" / "quality.md").read_text()
    commands = page.split("```bash\n")[1].split("```")[0].splitlines()
    monkeypatch.chdir(tmp_path)
    assert [said(*command.split()[1:])[0] for command in commands if command.startswith("lmmixup ")] == [0] * len(
        commands
    )


def test_a_small_datastore_says_that_it_was_not_measured(said, tmp_path, hashing):
    (tmp_path / "rated.jsonl").write_text(json.dumps({"text": "Q: a\nA: b", "score": 2}))
    code, told = said("datastore", "build", tmp_path / "rated.jsonl", "-o", tmp_path / "store")
    assert code == 0 and "Too few rows to measure" in told


UNBUILDABLE = [  # lines of the file, its name, what is said
    (['{"prompt": "a", "completion": "b"}'], "rated.jsonl", "holds no scored row: {'no score': 1}. Rate it first."),
    (['{"text": "a", "score": 1, "task_type": "poem"}'], "rated.jsonl", "Unknown task type 'poem'"),
    (['{"text": "a", "score": true}'], "rated.jsonl", "no whole number from 0 to 5"),
    ([], "rated.csv", "ends in '.csv'. Accepted files"),
    (["PAR1"], "rated.parquet", "is not a Parquet file"),
]


@pytest.mark.parametrize(("lines", "name", "message"), UNBUILDABLE)
def test_what_no_datastore_can_be_built_from(said, tmp_path, hashing, lines, name, message):
    (tmp_path / name).write_text("\n".join(lines))
    code, told = said("datastore", "build", tmp_path / name, "-o", tmp_path / "store")
    assert (code, message in told) == (1, True), told
    assert not (tmp_path / "store").exists()


def test_a_folder_that_is_no_datastore_is_named(said, tmp_path):
    code, told = said("datastore", "show", tmp_path)
    assert code == 1 and "datastore.json" in told
