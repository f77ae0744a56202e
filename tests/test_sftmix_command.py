"""`lmmixup confidence` by the command, and the budget of `lmmixup mosaic` with a real tokenizer."""

import json
import re

import pytest
from conftest import REPOSITORY, invoked
from datasets import Dataset

from hf_lmmixup.distiller import build_mini_distiller
from hf_lmmixup.sftmix import load_confidence
from hf_lmmixup.tiny_distiller import build_tiny_distiller


pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL reports no usage from there


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pile")
    rows = [{"prompt": f"What is {i} plus one?", "completion": f"It is {i + 1}."} for i in range(9)]
    (folder / "pile.jsonl").write_text("\n".join([*map(json.dumps, rows), "broken"]))
    build_tiny_distiller(folder / "tiny", [row["completion"] for row in rows])
    return folder


def test_reference_run_table_rows_and_plot(pile, tmp_path):
    run = ["--model", pile / "tiny", "--epochs", 2, "--max-length", 64, "--run-directory", tmp_path / "run"]
    rows, table = tmp_path / "rows.parquet", tmp_path / "c.parquet"
    told = invoked("confidence", pile / "pile.jsonl", "-o", table, "--rows", rows, "--checkpoints", 2, *run)
    measured = load_confidence(table)
    assert [row["checkpoints"] for row in measured] == [[2, 4]] * 9
    joined = Dataset.from_parquet(str(rows), keep_in_memory=True)
    assert dict(zip(joined["id"], joined["confidence"], strict=True)) == dict(
        zip(measured["id"], measured["confidence"], strict=True)
    )
    assert (tmp_path / "c.svg").read_text().startswith("<svg")
    for fact in (
        "read │ 9",
        "confident half │ 4",
        "unconfident half │ 4",
        "in neither half │ 1",
        "not valid JSON │ 1",
    ):
        assert fact in told
    assert "reference run ..." in told and "{'train" not in told

    saved = tmp_path / "run" / "checkpoint-4"
    invoked("confidence", pile / "pile.jsonl", "-o", tmp_path / "s.parquet", "--checkpoint", saved, "--max-length", 64)
    for one, other in zip(measured, load_confidence(tmp_path / "s.parquet"), strict=True):
        assert other["perplexity"] == pytest.approx(one["perplexity"][1:], rel=1e-4)


def test_online_and_the_plot_elsewhere(pile, tmp_path):
    options = ["--model", pile / "tiny", "--online", "--epochs", 1, "--max-length", 64, "--limit", 4]
    invoked("confidence", pile / "pile.jsonl", "-o", tmp_path / "c.parquet", "--plot", tmp_path / "p.svg", *options)
    assert [row["checkpoints"] for row in load_confidence(tmp_path / "c.parquet")] == [[1]] * 4
    assert (tmp_path / "p.svg").is_file() and not (tmp_path / "c.svg").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Name either --model, which is trained on the rows, or --checkpoint"),
        (["--model", "a", "--checkpoint", "b"], "Name either --model"),
        (["--checkpoint", "b", "--online"], "--online listens to a training run"),
        (["--model", "./nowhere"], "No model at './nowhere': no model folder, and no Hub id in reach."),
        (["--checkpoint", "."], "'.' holds no tokenizer that can be read."),
        (["--model", "a", "-o", "c.jsonl"], "A confidence table is written as .parquet."),
        (["--model", "a", "--rows", "rows.csv"], "Accepted outputs: .parquet, .jsonl."),
    ],
)
def test_what_cannot_be_done_is_said_first(pile, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    output = [] if "-o" in options else ["-o", tmp_path / "c.parquet"]
    assert message in invoked("confidence", pile / "pile.jsonl", *output, *options, code=1)


def test_neither_the_input_nor_the_table_is_written_over(pile, tmp_path):
    rows = tmp_path / "rows.parquet"
    Dataset.from_dict({"id": ["a"], "prompt": ["p"], "completion": ["c"]}).to_parquet(str(rows))
    before = rows.read_bytes()
    assert "is the input" in invoked("confidence", rows, "-o", rows, "--model", "a", code=1)
    with_rows = ["-o", tmp_path / "c.parquet", "--rows", rows, "--limit", 1]
    assert "is the input" in invoked("confidence", rows, *with_rows, "--model", "a", code=1)
    one = ["-o", tmp_path / "c.parquet", "--rows", tmp_path / "." / "c.parquet"]
    assert "--rows and --output both name" in invoked("confidence", rows, *one, "--model", "a", code=1)
    assert rows.read_bytes() == before and list(tmp_path.iterdir()) == [rows]


def test_rows_that_are_all_too_long(pile, tmp_path):
    options = ["--model", pile / "tiny", "--max-length", 2]
    told = invoked("confidence", pile / "pile.jsonl", "-o", tmp_path / "c.parquet", *options, code=1)
    assert "None of the 9 rows has a response within max_length=2 tokens" in told


def test_mosaics_keep_to_the_budget_of_a_tokenizer(pile, tmp_path):
    from transformers import AutoTokenizer

    options = ["--tokenizer", pile / "tiny", "--max-tokens", "120", "--number", "max_length", "--strategy", "primary"]
    invoked("mosaic", pile / "pile.jsonl", "-o", tmp_path / "m.jsonl", *options)
    tokenizer = AutoTokenizer.from_pretrained(pile / "tiny")
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    lengths = [len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) for row in rows]
    assert 36 < max(lengths) < 120  # the tokenizer adds no end, training does
    assert sum(len(row["order"]) for row in rows) == 9


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf_lmmixup").symlink_to(REPOSITORY / "hf_lmmixup")
    block = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs" / "sftmix.md").read_text(), re.DOTALL)[0]
    for line in block.splitlines():
        assert line.startswith("lmmixup ")
        if line == "lmmixup tiny models/tiny-distiller":
            build_mini_distiller("models/tiny-distiller", reading_steps=0)  # the command, less its reading
        else:
            invoked(*line.split()[1:])
    assert len(load_confidence(tmp_path / "confidence.parquet")) == 32
