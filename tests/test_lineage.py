"""The story of one row, and what goes when its sources are withdrawn."""

import json
import os
import shutil

import pyarrow.parquet as pq
import pytest
from borrowed_tools import CopyingWriter, tools
from conftest import invoked
from datasets import load_dataset
from test_modes import ROWS, TRAINING_FREE, recipe

from hf_lmmixup.artifacts import dataset_publication
from hf_lmmixup.data_arms import rows_of_run
from hf_lmmixup.lineage import story, withdraw
from hf_lmmixup.pipeline import run
from hf_lmmixup.prompts import format_completion
from hf_lmmixup.recipe import ClusterRecipe, SelectRecipe
from hf_lmmixup.records import row_id


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lineage")
    rows = [*ROWS, {"prompt": "nothing"}, {**ROWS[0], "source": "forum"}]
    rows[1] = {**rows[1], "source": "forum"}
    run(recipe(folder, rows=rows, distiller=TRAINING_FREE), tools=tools())
    return folder / "run"


def identifier(place):
    return row_id(ROWS[place]["prompt"], ROWS[place]["completion"])


STORIES = [  # place in the input, last stage, words of the last step
    (24, "end", "dropped: decontaminate: holds a text of gsm8k (100%"),
    (27, "end", "dropped: rate: the judge abstains"),
    (28, "end", "dropped: cluster: no related rows"),
    (25, "end", ""),
    (3, "end", "in the dataset"),
]


@pytest.mark.parametrize(("place", "stage", "words"), STORIES)
def test_story_ends_where_the_ledger_says(finished, place, stage, words):
    steps = story(finished, identifier(place))
    assert steps[0].text.startswith("read from pile.jsonl: ")
    assert steps[-1].stage == stage
    assert words in steps[-1].text


def test_story_of_a_merged_row_goes_on_with_what_it_became(finished):
    steps = story(finished, identifier(3))
    assert [step.stage for step in steps] == [
        *("load", "rate", "cluster", "distil", "end", "distil", "check", "rate again", "end")
    ]
    texts = [step.text for step in steps]
    assert texts[1] == "score 1"
    assert texts[2].startswith("cluster ")
    assert texts[3].startswith("try 1: taken: <think>")
    assert texts[4].startswith("merged into ")
    assert f"{identifier(3)} (score 1)" in texts[5]
    assert texts[7] == "score 5"
    distilled = texts[4].rpartition(" ")[2]
    assert story(finished, distilled) == steps[5:]


def test_story_of_a_row_whose_distillation_was_dropped_shows_it(tmp_path):
    weak = tools(CopyingWriter(format_completion("All ask the same.", "Q: What is it?\nA: A cause of tides.")))
    select = SelectRecipe(min_score=5, fallback_share=0.0)
    run(recipe(tmp_path, distiller=TRAINING_FREE, select=select), tools=weak)
    steps = story(tmp_path / "run", identifier(3))
    assert [step.stage for step in steps][-5:] == ["end", "distil", "check", "rate again", "end"]
    texts = [step.text for step in steps]
    assert texts[-5] == "dropped: distilled row not in the dataset: select: score below the minimum"
    assert "A cause of tides." in texts[-4] and texts[-1] == "not in the dataset"


def test_story_of_a_row_that_is_kept_alone_drops_it_nowhere(tmp_path):
    apart = {"prompt": "zxcv", "completion": "qwer uiop"}
    run(recipe(tmp_path, rows=[*ROWS[:8], apart], cluster=ClusterRecipe(singletons="keep")), tools=tools())
    steps = story(tmp_path / "run", row_id(apart["prompt"], apart["completion"]))
    assert [(step.stage, step.text) for step in steps][2:] == [
        ("cluster", "no related rows"),
        ("end", "in the dataset as it is"),
    ]


def test_story_of_duplicates_and_of_unreadable_rows(finished):
    pair = [story(finished, identifier(place)) for place in (25, 26)]
    texts = [" | ".join(step.text for step in steps) for steps in pair]
    assert sum("stands for" in text for text in texts) == 1
    assert sum("dropped: deduplicate: same text as another row" in text for text in texts) == 1
    (first, last) = story(finished, "pile.jsonl:30")
    assert (first.stage, first.text, last.text) == ("load", "dropped: no completion", "dropped: no completion")


def test_withdrawn_rows_take_along_what_was_made_of_them(finished, tmp_path):
    before = pq.read_table(finished / "dataset/data").to_pylist()
    done = withdraw(finished, tmp_path / "new", ids=[identifier(3), identifier(25)], sources=["forum"])
    after = pq.read_table(tmp_path / "new/data").to_pylist()
    assert set(done.withdrawn) == {identifier(1), identifier(3), identifier(25)}
    assert after == [row for row in before if not set(row["sources"]) & set(done.withdrawn)]
    assert set(done.dropped) == {row["id"] for row in before} - {row["id"] for row in after}
    assert done.left == len(after) < len(before)
    assert not set(done.orphans) & set(done.withdrawn)
    assert "3 raw rows were withdrawn" in (tmp_path / "new/README.md").read_text()


def table_of_card(card, title):
    """The lines of a card's table without its head, as lists of their cells."""
    lines = card[card.index(title) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]


def test_card_after_a_withdrawal_counts_the_rows_that_are_left(finished, tmp_path):
    done = withdraw(finished, tmp_path / "new", ids=[identifier(3), identifier(25), identifier(28)])
    rows = pq.read_table(tmp_path / "new/data").to_pylist()
    card = (tmp_path / "new/README.md").read_text()
    origins = [row["origin"] for row in rows]
    kept, distilled = origins.count("original"), origins.count("distilled")
    assert f"{len(ROWS) + 2} raw instruction pairs went in and {len(rows)} rows came out." in card
    assert f"{kept} were kept as they were, and {distilled} were distilled" in card
    lines = {(state, detail): int(count) for state, detail, count in table_of_card(card, "| state |")[:-1]}
    merged = {source for row in rows if row["origin"] == "distilled" for source in row["sources"]}
    counts = {state: sum(count for (name, _), count in lines.items() if name == state) for state, _ in lines}
    assert counts["kept"] == kept
    assert counts["merged"] == len(merged)
    assert sum(counts.values()) == len(ROWS) + 2
    assert lines["dropped", "withdraw: withdrawn"] == 3
    orphaned = "distilled row not in the dataset: withdraw: another of its sources is withdrawn"
    assert lines["dropped", orphaned] == len(done.orphans) > 0
    assert ("dropped", "cluster: no related rows") not in lines  # row 28, which is withdrawn
    assert sum(int(line[-1]) for line in table_of_card(card, "| score |")) == len(rows)


def test_what_is_left_is_published_with_its_books_and_without_withdrawn_texts(finished, tmp_path):
    withdraw(finished, tmp_path / "new", ids=[identifier(3)])
    publication = dataset_publication(tmp_path / "new", "ada/rest", licenses=["mit"])
    files = {file.name: file.content for file in publication.files}
    here = (tmp_path / "new/README.md").read_text().partition("## What became of the raw rows")[2].partition("##")[0]
    assert here and here in files["README.md"].decode()
    assert json.loads(files["run/ledger.json"])["dropped"]["withdraw: withdrawn"] == 1
    assert ROWS[3]["completion"] not in (tmp_path / "new/facts.json").read_text()
    loaded = load_dataset(str(tmp_path / "new"), split="train", cache_dir=str(tmp_path))
    assert loaded["id"][:] == pq.read_table(tmp_path / "new/data")["id"].to_pylist()


def test_a_link_to_nothing_is_in_the_way(finished, tmp_path):
    (tmp_path / "new").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="exists. Name another folder"):
        withdraw(finished, tmp_path / "new", ids=[identifier(3)])
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_dataset_that_lacks_a_file_is_neither_withdrawn_from_nor_pushed_nor_compared(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (shard,) = (tmp_path / "run/dataset/data").iterdir()
    shard.rename(shard.with_name("train-00000-of-00002.parquet"))
    for work in (
        lambda: withdraw(tmp_path / "run", tmp_path / "new", ids=[identifier(3)]),
        lambda: dataset_publication(tmp_path / "run", "ada/rest", licenses=["mit"]),
        lambda: rows_of_run(tmp_path / "run"),
    ):
        with pytest.raises(FileNotFoundError, match=r"not whole: train-00001-of-00002\.parquet is missing"):
            work()


@pytest.mark.parametrize("name", ["1_load/rows.arrow", "1_load/dropped.json", "3_rate/rows.arrow"])
@pytest.mark.parametrize("left", [0, 200, None], ids=["empty", "cut", "deleted"])
def test_a_damaged_file_of_a_run_is_named(finished, tmp_path, name, left):
    file = tmp_path / "run/stages" / name
    shutil.copytree(finished, tmp_path / "run")
    file.unlink() if left is None else os.truncate(file, min(left, file.stat().st_size // 2))
    told = "No such file" if left is None else "is damaged: .*Restore it"
    with pytest.raises((ValueError, FileNotFoundError), match=rf"(?s)^(?=.*{name})(?=.*{told})"):
        story(tmp_path / "run", identifier(3))


UNKNOWN = [  # ids, sources, words of the message
    ([3, "nosuchid"], [], r"none of these rows \(1 by id: 'nosuchid'\)\. Ids and sources stand in stages/1_load/"),
    ([3], ["forum", "srcX"], r"none of these rows \(1 by source: 'srcX'\)"),
    (["a"], ["b"], r"\(1 by id: 'a'\) \(1 by source: 'b'\)"),
    ([3, *"abcdefg"], [], r"7 by id: 'a', 'b', 'c', 'd', 'e' and 2 more\)"),
    ([], [], "none of these rows"),
]


@pytest.mark.parametrize(("ids", "sources", "message"), UNKNOWN)
def test_nothing_is_withdrawn_where_one_is_unknown(finished, tmp_path, ids, sources, message):
    known = [identifier(one) if isinstance(one, int) else one for one in ids]
    with pytest.raises(ValueError, match=message):
        withdraw(finished, tmp_path / "new", ids=known, sources=sources)
    assert list(tmp_path.iterdir()) == []


def test_a_distilled_row_is_withdrawn_by_its_sources(finished, tmp_path):
    rows = pq.read_table(finished / "dataset/data").to_pylist()
    row = next(row for row in rows if row["origin"] == "distilled")
    sources = ", ".join(map(repr, row["sources"]))
    with pytest.raises(ValueError, match=f"Raw rows are withdrawn: '{row['id']}' is distilled from {sources}."):
        withdraw(finished, tmp_path / "new", ids=[row["id"], identifier(3)])
    assert list(tmp_path.iterdir()) == []


def test_commands(finished, tmp_path):
    assert "score 1" in invoked("explain", identifier(3), "--run", finished)
    assert "knows no row 'nobody'" in invoked("explain", "nobody", "--run", finished, code=1)
    assert "holds no finished run" in invoked("explain", "nobody", "--run", tmp_path, code=1)
    (tmp_path / "ids.txt").write_text(identifier(3) + "\n", encoding="utf-16")
    one = ["withdraw", "--run", finished, "--ids-file", tmp_path / "ids.txt", "-o", tmp_path / "new"]
    assert "ids.txt is no text in UTF-8" in invoked(*one, code=1)
    (tmp_path / "ids.txt").write_text(identifier(3) + "\r\n", encoding="utf-8-sig")
    told = invoked(*one)
    assert "1 raw rows withdrawn" in told and "--update" in told
    assert "exists. Name another" in invoked(
        "withdraw", "--run", finished, "--id", identifier(3), "-o", tmp_path / "new", code=1
    )
    assert "read none of these rows" in invoked(
        "withdraw", "--run", finished, "--source", "x", "-o", tmp_path / "b", code=1
    )
    assert "Say what to withdraw" in invoked("withdraw", "--run", finished, "-o", tmp_path / "b", code=1)


def test_a_folder_may_be_called_what_looks_like_markup(finished, tmp_path):
    told = invoked("withdraw", "--run", finished, "--id", identifier(3), "-o", tmp_path / "new[/]x")
    assert "new[/]x." in told
