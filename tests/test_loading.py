"""Raw rows of every form become the same record; what cannot is counted with its place and reason."""

import gzip
import json
import lzma
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from hf_lmmixup.inputs import short_name
from hf_lmmixup.loading import load_rows, normalize_rows
from hf_lmmixup.records import LOADED, row_id
from hf_lmmixup.stage_files import read_rows, read_scored


SHOW = """
import json, sys
from hf_lmmixup.loading import load_rows
outcome = load_rows(sys.argv[1])
print(json.dumps([outcome.dataset["prompt"][:], outcome.dropped]))
"""


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def user(text):
    return {"role": "user", "content": text}


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
    ({"instruction": "", "input": "1 + 2", "output": "3"}, "1 + 2", "3"),
    (  # an empty system turn says nothing; turns of one Arrow type all have a field for calls
        {
            "messages": [
                {"role": "system", "content": "", "tool_calls": None},
                {"role": "user", "content": "hi", "tool_calls": []},
                {"role": "assistant", "content": "hello", "tool_calls": None},
            ]
        },
        "hi",
        "hello",
    ),
    (
        {"prompt": [{"role": "developer", "content": "Be brief."}, user("hi")], "completion": "hello"},
        "System: Be brief.\n\nUser: hi",
        "hello",
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


CALLED = "turn calls tools"

REJECTS = [
    ({"prompt": "", "completion": "b"}, "empty prompt"),
    ({"prompt": "a", "completion": "  "}, "empty completion"),
    ({"prompt": None, "completion": "b"}, "no prompt"),
    ({"prompt": "a"}, "no completion"),
    ({"prompt": 3, "completion": "b"}, "prompt is neither text nor a list of turns"),
    ({"prompt": [user("a")], "completion": [{"role": "assistant", "content": "b", "tool_calls": [{}]}]}, CALLED),
    ({"prompt": [{"role": "assistant", "content": None, "tool_calls": [{}]}], "completion": "b"}, CALLED),
    ({"prompt": [{"role": "system", "content": " "}], "completion": "b"}, "empty prompt"),
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


def test_rows_of_several_forms_are_read_from_one_pile(tmp_path):
    rows = [raw for raw, _, _ in FORMS]
    rows += [rows[0] | {"instruction": "a", "output": "b"}, {"text": "none"}, {"instruction": "a", "output": None}]
    outcome = load_rows(write(tmp_path / "pile.jsonl", rows))
    pairs = dict.fromkeys((prompt, completion) for _, prompt, completion in FORMS)
    assert list(zip(outcome.dataset["prompt"], outcome.dataset["completion"], strict=True)) == list(pairs)
    unread = {"pile.jsonl:13": "no prompt", "pile.jsonl:14": "no prompt"}
    assert {place: reason for place, reason in outcome.dropped.items() if reason != "duplicate"} == unread


def test_a_folder_of_parquet_files_may_hold_several_forms(tmp_path):
    turns = [user("hi"), {"role": "assistant", "content": "hello"}]
    Dataset.from_dict({"instruction": ["Add 1 2."], "output": ["3"]}).to_parquet(tmp_path / "a.parquet")
    Dataset.from_dict({"prompt": [None, "b"], "completion": [None, "c"], "messages": [turns, None]}).to_parquet(
        tmp_path / "b.parquet"
    )
    outcome = load_rows(tmp_path)
    assert outcome.dataset["prompt"][:] == ["Add 1 2.", "hi", "b"] and not outcome.dropped


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


def test_an_array_in_a_file_of_lines_is_told_the_form(tmp_path):
    (tmp_path / "pile.jsonl").write_text('[{"prompt": "a", "completion": "b"}]')
    with pytest.raises(ValueError, match=r"1 read.*Expected one JSON object a line, or in a .json file one array"):
        load_rows(tmp_path / "pile.jsonl")


def test_a_bad_line_in_a_folder_is_a_reject_and_ends_nothing(tmp_path):
    good = {"prompt": "a", "completion": "b"}
    (tmp_path / "in").mkdir()
    deep = '{"prompt": "x", "completion": "y", "deep": ' + "[" * 20_000 + "]" * 20_000 + "}\n"
    (tmp_path / "in" / "a.jsonl").write_text(deep + '{"prompt": tr\n' + json.dumps(good) + "\n")
    (tmp_path / "in" / "more").mkdir()
    write(tmp_path / "in" / "more" / "a.jsonl", [{"prompt": "", "completion": "b"}, {**good, "prompt": "c", "n": 1}])
    command = [sys.executable, "-c", SHOW, str(tmp_path / "in")]  # a segmentation fault shall not end the tests
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["a", "c"],
        {
            "a.jsonl:1": "nested deeper than 64 levels",
            "a.jsonl:2": "not valid JSON",
            "more/a.jsonl:1": "empty prompt",
        },
    ]


def test_the_card_of_a_folder_names_its_files_and_splits(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    write(tmp_path / "b.jsonl", [{"prompt": "b", "completion": "b"}])
    files = "[{split: train, path: b.jsonl}, {split: x, path: a.jsonl}]"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {files}\n---\n")
    assert load_rows(tmp_path).dataset["prompt"][:] == ["b"]
    assert load_rows(tmp_path, split="x").dataset["prompt"][:] == ["a"]
    with pytest.raises(ValueError, match=r"has the splits \['train', 'x'\], not 'test'"):
        load_rows(tmp_path, split="test")


def test_other_files_are_read_from_a_folder_and_what_is_left_out_is_told(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("\ufeffprompt,completion\nwhy?,so.\n")
    with pytest.raises(ValueError, match=r"ends in '.csv'.*name the folder"):
        load_rows(tmp_path / "a.csv")
    assert load_rows(tmp_path).dataset["prompt"][:] == ["why?"] and not caplog.records
    (tmp_path / "b.csv").write_text("prompt,completion\nhow?,so.\n")
    write(tmp_path / "c.jsonl", [{"prompt": "who?", "completion": "b"}])
    assert len(load_rows(tmp_path).dataset) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: files of another format are not read: c.jsonl."
    ]


def test_files_of_each_format_that_is_left_out_are_told(tmp_path, caplog):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, [{"prompt": name, "completion": "b"}])
    for name in ("c.csv", "D.JSONL", "e.parquet"):
        (tmp_path / name).write_text("?")
    assert len(load_rows(tmp_path).dataset) == 2
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.endswith("files of another format are not read: D.JSONL, c.csv, e.parquet.")


def test_compressed_shards_are_read_as_others_are(tmp_path):
    lines = [b'{"instruction": "a", "output": "b"}', b"{cut", b'{"prompt": "c", "completion": "d", "more": [1]}']
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b'[{"prompt": "e", "completion": "f"}]'))
    write(tmp_path / "c.jsonl", [{"prompt": "g", "completion": "h"}])
    outcome = load_rows(tmp_path)
    assert sorted(outcome.dataset["prompt"]) == ["a", "c", "e", "g"]
    assert outcome.dropped == {"a.jsonl.gz:2": "not valid JSON"}
    alone = load_rows(tmp_path / "a.jsonl.gz")
    assert sorted(alone.dataset["prompt"]) == ["a", "c"] and alone.dropped == outcome.dropped


@pytest.mark.parametrize("name", ["nowhere.json.gz", "nowhere.csv", "ada/PILE.CSV", "nowhere.jsonl.zst"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match=f"^No file at {name}"):
        load_rows(name)


@pytest.mark.parametrize("spoil", [lambda packed: packed[:-30], lambda packed: b"no" + packed])
def test_a_shard_that_cannot_be_unpacked_is_named(tmp_path, spoil):
    packed = gzip.compress(b"".join(b'{"prompt": "%d", "completion": "b"}\n' % number for number in range(100)))
    (tmp_path / "a.jsonl.gz").write_bytes(spoil(packed))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz cannot be unpacked: .*\. Copy or pack it again\.$"):
        load_rows(tmp_path)


def test_links_that_are_not_followed_are_told(tmp_path, caplog):
    write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    (tmp_path / "b.jsonl").symlink_to("nowhere.jsonl")
    (tmp_path / "c").symlink_to(tmp_path)
    assert len(load_rows(tmp_path).dataset) == 1
    assert "files that are not there, are not read: b.jsonl, c." in caplog.text


def test_a_folder_whose_name_is_a_pattern_is_refused(tmp_path):
    (tmp_path / "pile [2]").mkdir()
    write(tmp_path / "pile [2]" / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(ValueError, match="for a pattern. Rename the folder"):
        load_rows(tmp_path / "pile [2]")


def test_what_load_dataset_cannot_read_is_told_in_one_sentence(tmp_path):
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(b'{"prompt": "a", "completion": "b"}'))
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(b'{"instruction": "a", "output": "c"}'))
    with pytest.raises(ValueError, match=rf"cannot read the files of {tmp_path}: their columns differ\. Copy or"):
        load_rows(tmp_path)


@pytest.mark.parametrize(("kind", "pack"), [("csv.gz", gzip.compress), ("csv.xz", lzma.compress), ("zip", bytes)])
def test_a_packed_file_that_is_cut_off_is_told_of(tmp_path, kind, pack):
    packed = pack(b"prompt,completion\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(3000)))
    (tmp_path / f"a.{kind}").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=f"cannot read the files of {tmp_path}: .* Copy or unpack them again"):
        load_rows(tmp_path)


@pytest.mark.parametrize("function", ["load_dataset_builder", "load_from_disk"])
def test_a_cache_that_cannot_be_written_is_no_fault_of_the_files(tmp_path, monkeypatch, function):
    def refuse(_):
        raise PermissionError(13, "Permission denied", "/cache")

    monkeypatch.setattr(f"datasets.{function}", refuse)
    Dataset.from_dict({"prompt": ["a"], "completion": ["b"]}).save_to_disk(tmp_path)
    if function == "load_dataset_builder":
        (tmp_path / "state.json").unlink()
    with pytest.raises(PermissionError, match="/cache"):
        load_rows(tmp_path)


@pytest.mark.parametrize("content", ["", "{}"])
def test_a_saved_dataset_that_is_not_whole_is_named(tmp_path, content):
    Dataset.from_dict({"prompt": ["a"], "completion": ["b"]}).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved/state.json").write_text(content)
    with pytest.raises(ValueError, match="saved is not whole as `save_to_disk` wrote it: "):
        load_rows(tmp_path / "saved")


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


@pytest.mark.parametrize("read", [load_rows, read_rows, read_scored])
def test_parquet_that_is_damaged_or_has_a_column_twice_is_named(tmp_path, read):
    columns = [["a", "b"], ["p", "q"], ["c", "d"], [1, 2]]
    table = pa.table([*columns, [3, 4]], names=["id", "prompt", "completion", "score", "score"])
    pq.write_table(table, tmp_path / "doubled.parquet")
    pq.write_table(table.select([0, 1, 2, 3]), tmp_path / "torn.parquet")
    with (tmp_path / "torn.parquet").open("r+b") as file:
        file.seek(4)
        file.write(b"x" * 200)
    for name, message in (("doubled", "has two columns 'score'"), ("torn", "or a damaged one: ")):
        with pytest.raises(ValueError, match=rf"{name}\.parquet .*{message}"):
            read(tmp_path / f"{name}.parquet")


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
        return {"train": [{"prompt": "p", "completion": "c"}], "held": [{"prompt": "q", "completion": "c"}]}

    monkeypatch.setattr("datasets.load_dataset", load)
    assert load_rows("ada/pile:main").dataset["source"][:] == ["pile:main"]
    with pytest.raises(ValueError, match="Config name is missing. A configuration is named as ada/pile:CONFIGURATION"):
        load_rows("ada/pile")
    assert asked == [("ada/pile", "main"), ("ada/pile", None)]
    assert load_rows("ada/pile:main:held").dataset["prompt"][:] == ["q"]
    with pytest.raises(
        ValueError, match=r"splits \['held', 'train'\], not 'x'. Name one of them as ada/pile:main:SPLIT"
    ):
        load_rows("ada/pile:main:x")
    monkeypatch.setattr(
        "datasets.load_dataset", lambda name, configuration: {"held": [{"prompt": "q", "completion": "c"}]}
    )
    assert len(load_rows("ada/pile::held").dataset) == 1


def test_names_of_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "june.v2").mkdir()
    names = {"a/pile.jsonl": "pile", "pile.parquet": "pile", "ada/pile-1.5": "pile-1.5", "june.v2/": "june.v2"}
    names |= {"ada/pile:main": "pile:main", ".": tmp_path.name, "pile.jsonl.gz": "pile"}
    assert {source: short_name(source) for source in names} == names


def test_many_rows_cross_the_flush_border():
    rows = ((f"x:{n}", {"prompt": str(n), "completion": "y"}) for n in range(20_005))
    outcome = normalize_rows(rows, name="x")
    assert len(outcome.dataset) == 20_005
    assert outcome.dataset[20_004]["prompt"] == "20004"
