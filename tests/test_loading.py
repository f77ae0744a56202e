"""Raw rows of every form become the same record; what cannot is counted with its place and reason."""

import json

import pytest
from datasets import Dataset, DatasetDict

from hf_lmmixup.loading import load_rows, normalize_rows, short_name
from hf_lmmixup.records import LOADED, row_id


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FORMS = [
    # (raw row, prompt, completion)
    ({"prompt": "why sky blue", "completion": "scattering"}, "why sky blue", "scattering"),
    ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2", "3"),
    ({"instruction": "Say hi.", "input": "", "output": "hi"}, "Say hi.", "hi"),
    ({"instruction": "Say hi.", "output": "hi"}, "Say hi.", "hi"),
    (
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        "hi",
        "hello",
    ),
    (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        "hi",
        "hello",
    ),
    (  # several turns stay whole; a trailing question has no answer and is left out
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "hi"},
                {"from": "gpt", "value": "hello"},
                {"from": "human", "value": "bye"},
                {"from": "gpt", "value": "see you"},
                {"from": "human", "value": "?"},
            ]
        },
        "System: Be brief.\n\nUser: hi\n\nAssistant: hello\n\nUser: bye",
        "see you",
    ),
    (  # prompt and completion as messages
        {"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "hello"}]},
        "hi",
        "hello",
    ),
]


@pytest.mark.parametrize(("raw", "prompt", "completion"), FORMS)
def test_form(tmp_path, raw, prompt, completion):
    outcome = load_rows(write(tmp_path / "pile.jsonl", [raw]))
    assert outcome.dropped == {}
    assert outcome.dataset.features == LOADED
    assert outcome.dataset[0] == {
        "id": row_id(prompt, completion),
        "prompt": prompt,
        "completion": completion,
        "source": "pile.jsonl",
    }


REJECTS = [
    ({"prompt": "", "completion": "b"}, "empty prompt"),
    ({"prompt": "a", "completion": "  "}, "empty completion"),
    ({"prompt": None, "completion": "b"}, "no prompt"),
    ({"prompt": "a"}, "no completion"),
    ({"prompt": 3, "completion": "b"}, "conversation is not a list of turns"),
    ({"prompt": "a\ud800", "completion": "b"}, "prompt holds a lone surrogate"),
    ({"prompt": "a", "completion": "b" * 1_000_001}, "text longer than 1000000 characters"),
    ({"prompt": "a", "completion": ["b"]}, "turn is not an object"),
    ({"prompt": "a", "completion": [{"role": "narrator", "content": "b"}]}, "turn without a known role"),
]


@pytest.mark.parametrize(("raw", "reason"), REJECTS)
def test_reject(tmp_path, raw, reason):
    good = {"prompt": "good", "completion": "row"}
    outcome = load_rows(write(tmp_path / "pile.jsonl", [good, raw, good | {"prompt": "other"}]))
    assert outcome.dropped == {"pile.jsonl:2": reason}
    assert outcome.dataset["prompt"][:] == ["good", "other"]


def test_duplicates_are_counted_and_the_first_stays(tmp_path):
    row = {"prompt": "a", "completion": "b"}
    outcome = load_rows(write(tmp_path / "pile.jsonl", [row, {**row, "source": "web"}, row]))
    assert outcome.dropped == {"pile.jsonl:2": "duplicate", "pile.jsonl:3": "duplicate"}
    assert outcome.dataset["source"][:] == ["pile.jsonl"]


def test_unknown_columns_name_what_was_found_and_what_is_accepted(tmp_path):
    with pytest.raises(ValueError, match=r"\['question', 'reply'\].*prompt/completion.*Alpaca.*"):
        load_rows(write(tmp_path / "pile.jsonl", [{"question": "a", "reply": "b"}]))


def test_empty_file_and_file_without_a_usable_row(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        load_rows(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(ValueError, match="no usable row: 1 read"):
        load_rows(write(tmp_path / "bad.jsonl", [{"prompt": "", "completion": ""}]))


def test_limit_counts_raw_rows(tmp_path):
    rows = [{"prompt": "", "completion": "x"}] + [{"prompt": str(n), "completion": "x"} for n in range(5)]
    outcome = load_rows(write(tmp_path / "pile.jsonl", rows), limit=3)
    assert len(outcome.dataset) + len(outcome.dropped) == 3


def test_parquet_saved_folder_and_dictionary(tmp_path):
    rows = Dataset.from_dict({"instruction": ["Add."], "input": ["1 2"], "output": ["3"]})
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "folder")
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "dictionary")
    texts = [load_rows(tmp_path / name).dataset["prompt"][:] for name in ("a.parquet", "folder", "dictionary")]
    assert texts == [["Add.\n\n1 2"]] * 3


def test_split_that_is_not_there_is_named(tmp_path):
    DatasetDict({"test": Dataset.from_dict({"prompt": ["a"], "completion": ["b"]})}).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match=r"\['test'\]"):
        load_rows(tmp_path / "d")
    assert len(load_rows(tmp_path / "d", split="test").dataset) == 1


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("rows.csv", b"a,b", ValueError),
        ("rows.parquet", b"not parquet", ValueError),
        ("missing.jsonl", None, FileNotFoundError),
        ("missing.parquet", None, FileNotFoundError),
        ("a/b/c", None, FileNotFoundError),
    ],
)
def test_what_is_no_data_is_refused_by_name(tmp_path, name, content, error):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=name.rpartition("/")[2]):
        load_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["nofolder", "owner/nofolder", "no folder"])
def test_what_is_neither_here_nor_on_the_hub_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"^{name} is neither a file nor a folder, nor found on the Hub: "):
        load_rows(name)


def test_a_configuration_of_the_hub_is_named_behind_a_colon(monkeypatch):
    asked = []

    def load(name, configuration):
        asked.append((name, configuration))
        if configuration is None:
            raise ValueError("Config name is missing.")
        return {"train": [{"prompt": "p", "completion": "c"}]}

    monkeypatch.setattr("datasets.load_dataset", load)
    assert load_rows("ada/pile:main").dataset["source"][:] == ["pile:main"]
    with pytest.raises(ValueError, match="Config name is missing. A configuration is named as ada/pile:CONFIGURATION"):
        load_rows("ada/pile")
    assert asked == [("ada/pile", "main"), ("ada/pile", None)]


def test_names_of_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "june.v2").mkdir()
    names = {"a/pile.jsonl": "pile", "pile.parquet": "pile", "ada/pile-1.5": "pile-1.5", "june.v2/": "june.v2"}
    names |= {"ada/pile:main": "pile:main", ".": tmp_path.name}
    assert {source: short_name(source) for source in names} == names


def test_many_rows_cross_the_flush_border():
    rows = ((f"x:{n}", {"prompt": str(n), "completion": "y"}) for n in range(20_005))
    outcome = normalize_rows(rows, name="x")
    assert len(outcome.dataset) == 20_005
    assert outcome.dataset[20_004]["prompt"] == "20004"
