"""`lmmixup mosaic` by the command: every option reaches the mosaics, and the report balances."""

import json
import re

import pytest
from conftest import REPOSITORY, invoked
from datasets import Dataset

from hf_lmmixup.mosaic import read_responses
from hf_lmmixup.mosaic_files import read_turns


def written(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def pile(tmp_path):
    rows = [{"instruction": f"Say {i}", "output": f"«{i}»"} for i in range(60)]
    lines = [*map(json.dumps, rows), "broken", json.dumps(rows[0])]
    (tmp_path / "pile.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "pile.jsonl"


def test_every_row_is_accounted_for(pile, tmp_path):
    told = invoked("mosaic", pile, "-o", tmp_path / "m.jsonl", "--max-tokens", "none")
    rows = written(tmp_path / "m.jsonl")
    assert sorted(answer for row in rows for (answer,) in read_responses(row)) == sorted(f"«{i}»" for i in range(60))
    masked = sum(len(row["masked"]) for row in rows)
    for fact in (
        "rows read │ 62",
        "not used: not valid JSON │ 1",
        "not used: duplicate │ 1",
        "rows answered │ 60",
        f"skipped and answered later │ {masked}",
        f"examples │ {len(rows)}",
        f"Wrote {len(rows)} examples of 60 rows",
    ):
        assert fact in told
    for kind in {row["strategy"] for row in rows} - {"single"}:
        assert f"of which {kind} │ {sum(row['strategy'] == kind for row in rows)}" in told
    assert told.startswith("reading rows ... counting tokens ... writing mosaics ...")


def test_options_reach_the_mosaics(pile, tmp_path):
    def made(name, *options):
        invoked("mosaic", pile, "-o", tmp_path / name, "--max-tokens", "none", *options)
        return written(tmp_path / name)

    weighted = made(
        "w.jsonl", "--strategy", "permute=2", "--strategy", "maskout=0", "--number", "fixed", "--max-items", 4
    )
    assert {row["strategy"] for row in weighted} == {"permute"}
    assert {len(row["sources"]) for row in weighted} == {4}
    first, again, later = (made(f"{n}.jsonl", *options) for n, options in enumerate(((), (), ("--epoch", 1))))
    assert first == again != later
    assert first != made("s.jsonl", "--seed", 1)
    assert first == made("p.jsonl", "--num-proc", 2)
    assert sum(len(row["order"]) for row in made("l.jsonl", "--limit", 10)) == 10


def test_conversations_keep_their_turns_and_tables_their_columns(tmp_path):
    talks = [
        {
            "conversations": [
                {"from": "human", "value": f"Q{i}?"},
                {"from": "gpt", "value": f"A{i}."},
                {"from": "human", "value": f"R{i}?"},
                {"from": "gpt", "value": f"B{i}."},
                {"from": "human", "value": "unanswered"},
            ]
        }
        for i in range(12)
    ]
    talks[3] = {"conversations": [{"from": "human", "value": "nobody answers"}]}
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)))
    told = invoked("mosaic", tmp_path / "talks.jsonl", "-o", tmp_path / "t.jsonl", "--max-tokens", "none")
    assert "not used: no assistant turn │ 1" in told
    answers = sorted(pair for row in written(tmp_path / "t.jsonl") for pair in read_responses(row))
    assert answers == sorted((f"A{i}.", f"B{i}.") for i in range(12) if i != 3)

    table = {
        "id": [f"r{i}" for i in range(20)],
        "prompt": [f"Q{i}" for i in range(20)],
        "completion": [f"A{i}" for i in range(20)],
        "confidence": [-float(i) for i in range(20)],
    }
    Dataset.from_dict(table).to_parquet(str(tmp_path / "rows.parquet"))
    apart = ["--max-tokens", "none", "--keep-apart", "confidence", "--strategy", "primary"]
    invoked("mosaic", tmp_path / "rows.parquet", "-o", tmp_path / "k.jsonl", *apart)
    for row in written(tmp_path / "k.jsonl"):
        assert len({int(source[1:]) < 10 for source in row["sources"]}) == 1
        assert row["confidence"] == pytest.approx(-sum(int(s[1:]) for s in row["sources"]) / len(row["sources"]))

    # What `lmmixup confidence --rows rows.jsonl` writes is the same table.
    (tmp_path / "rows.jsonl").write_text(Dataset.from_dict(table).to_pandas().to_json(orient="records", lines=True))
    invoked("mosaic", tmp_path / "rows.jsonl", "-o", tmp_path / "k2.jsonl", *apart)
    assert written(tmp_path / "k2.jsonl") == written(tmp_path / "k.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # a budget without anything that counts
        ([], "Name the model with --tokenizer MODEL, or take --max-tokens none."),
        (["--max-tokens", "many"], "--max-tokens many is neither a whole number nor `none`."),
        (
            ["--max-tokens", "none", "--strategy", "permute=much"],
            "needs a number as its weight, for example permute=2",
        ),
        (["--max-tokens", "none", "--strategy", "collage"], "Unknown strategy 'collage'"),
        (["--max-tokens", "none", "--number", "poisson"], "Unknown number 'poisson'"),
        (["--max-tokens", "none", "--templates", "xx"], "No mosaic templates at 'xx'"),
        (["--max-tokens", "none", "-o", "out.csv"], "Accepted outputs: .parquet, .jsonl."),
    ],
)
def test_what_cannot_be_done_is_said_first(pile, tmp_path, options, message):
    told = invoked("mosaic", pile, *([] if "-o" in options else ["-o", tmp_path / "m.jsonl"]), *options, code=1)
    assert message in told and not (tmp_path / "m.jsonl").exists()


def test_pairs_among_conversations_are_conversations_of_one_turn(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    rows = [{"messages": turns}, {"instruction": "Add.", "input": "1 2", "output": " 3"}, {"text": "none"}]
    source = tmp_path / "pile.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = read_turns(source)
    pair = [{"role": "user", "content": "Add.\n\n1 2"}, {"role": "assistant", "content": "3"}]
    assert outcome.dataset["messages"][:] == [turns, pair]
    assert outcome.dropped == {"pile.jsonl:3": "no messages"}


def test_a_file_without_a_usable_conversation(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "?"}]}))
    told = invoked("mosaic", tmp_path / "t.jsonl", "-o", tmp_path / "m.jsonl", "--max-tokens", "none", code=1)
    assert "holds no usable row: rejected for ['no assistant turn']" in told


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf_lmmixup").symlink_to(REPOSITORY / "hf_lmmixup")
    (block,) = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs" / "mosaic.md").read_text(), re.DOTALL)
    for line in block.splitlines():
        assert line.startswith("lmmixup mosaic ")
        invoked(*line.split()[1:])
    pool = len(Dataset.from_parquet(str(tmp_path / "mosaics.parquet"), keep_in_memory=True)["order"])
    other = written(tmp_path / "other.jsonl")
    assert pool and {row["strategy"] for row in other} <= {"permute", "maskout", "single"}


def test_help_has_examples():
    for command in ("mosaic", "confidence"):
        assert invoked(command, "--help").count(f"lmmixup {command} ") >= 3
