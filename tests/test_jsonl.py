"""The strict reader: odd files become counted rejects, never a crash."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_lmmixup import jsonl
from hf_lmmixup.jsonl import Reject, parse_row, read_json


GOOD = b'{"prompt": "a", "completion": "b"}'

ODD_ROWS = [
    (b'{"prompt": "a\xff"}', "invalid UTF-8"),
    (b'{"prompt": "a"', "not valid JSON"),  # torn
    (b"[1, 2]", "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b'{"a": NaN}', "not valid JSON"),
    (b'{"a": Infinity}', "not valid JSON"),
    (b'{"a": 1, "a": 2}', "not valid JSON"),  # doubled key
    (b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested deeper than 64 levels"),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested deeper than 64 levels"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),  # an integer beyond Python's digit limit
]


@pytest.mark.parametrize(("raw", "reason"), ODD_ROWS, ids=[str(number) for number in range(len(ODD_ROWS))])
def test_odd_row_is_a_reject_and_the_next_one_is_read(tmp_path, raw, reason):
    file = tmp_path / "odd.jsonl"
    file.write_bytes(raw + b"\n" + GOOD + b"\n")
    first, second = read_json(file)
    assert first == ("odd.jsonl:1", Reject(reason))
    assert second == ("odd.jsonl:2", json.loads(GOOD))


@pytest.mark.parametrize("newline", [b"\n", b""], ids=["terminated", "torn"])
def test_line_over_the_cap_is_skipped_whole(tmp_path, newline):
    file = tmp_path / "long.jsonl"
    file.write_bytes(b'{"prompt": "' + b"x" * (jsonl.MAX_LINE_BYTES * 2) + b'"}' + newline)
    with file.open("ab") as stream:
        stream.write(GOOD if newline else b"")
    rows = [row for _, row in read_json(file)]
    assert rows[0] == Reject(f"line longer than {jsonl.MAX_LINE_BYTES} bytes")
    assert rows[1:] == ([json.loads(GOOD)] if newline else [])


def test_brackets_inside_text_are_not_nesting():
    row = {"prompt": "[{" * 500, "completion": 'a "quoted" \\ one'}
    assert parse_row(json.dumps(row).encode()) == row


def test_byte_order_mark_and_blank_lines(tmp_path):
    file = tmp_path / "bom.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\n\n  \n" + GOOD)
    assert [place for place, _ in read_json(file)] == ["bom.jsonl:1", "bom.jsonl:4"]


def test_empty_file_has_no_rows(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    assert list(read_json(tmp_path / "empty.jsonl")) == []


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.jsonl"):
        list(read_json(tmp_path / "nothing.jsonl"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab[]{},"\\', max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text("abc,[]", max_size=3), VALUES, max_size=3), max_size=5), st.booleans())
def test_array_and_lines_read_alike(tmp_path_factory, rows, indented):
    folder = tmp_path_factory.mktemp("json")
    (folder / "a.json").write_text(json.dumps(rows, indent=2 if indented else None, ensure_ascii=indented))
    (folder / "l.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert [row for _, row in read_json(folder / "a.json")] == rows
    assert [row for _, row in read_json(folder / "l.jsonl")] == rows


def test_array_is_cut_across_blocks(tmp_path):
    rows = [{"prompt": "p" * 50_000, "completion": str(number)} for number in range(5)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert [row for _, row in read_json(tmp_path / "a.json")] == rows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"a": 1}, {"a": 2', [{"a": 1}, Reject("array not closed")]),  # torn tail
        ("[]", []),
        ('[{"a": 1}] trailing', [{"a": 1}, Reject("text after the array")]),
        ("[1, {}]", [Reject("not a JSON object"), {}]),
    ],
)
def test_odd_arrays(tmp_path, text, expected):
    (tmp_path / "a.json").write_text(text)
    assert [row for _, row in read_json(tmp_path / "a.json")] == expected
