"""One stage each by the command: rows in, rows out, and what was dropped beside them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from borrowed_tools import raw_rows
from conftest import invoked
from datasets import Dataset
from hashing_encoder import HashingEncoder
from test_modes import write_rows

from hf_lmmixup.chat_model import ChatReply
from hf_lmmixup.cluster_page import render_inspection
from hf_lmmixup.records import CLUSTERED, LOADED, row_id
from hf_lmmixup.stage_files import read_rows
from hf_lmmixup.stage_files import write_rows as write_staged


@pytest.fixture(autouse=True)
def hashing(monkeypatch):
    monkeypatch.setattr("hf_lmmixup.encoder.load_encoder", lambda name=None: HashingEncoder())


def table(path):
    return pq.read_table(path).to_pylist()


def test_one_stage_after_the_other(tmp_path):
    rows = [*raw_rows(range(12)), {"prompt": "zxcv <b>", "completion": "qwer uiop"}]
    pile = write_rows(tmp_path / "pile.jsonl", [*rows, {"prompt": "ZXCV  <b>", "completion": "qwer uiop"}])
    clusters, distilled = tmp_path / "clusters.parquet", tmp_path / "distilled.parquet"
    told = invoked("cluster", pile, "-o", clusters, "--duplicates", 0.999, "--singletons", "drop")
    assert "deduplicate: same text as another row" in told
    numbers = [row["cluster_id"] for row in table(clusters)]
    assert len(numbers) == 12 and set(numbers) == set(range(max(numbers) + 1))
    dropped = json.loads((tmp_path / "clusters.parquet.dropped.json").read_text())
    assert sorted(reason.partition(" (")[0] for reason in dropped.values()) == [
        "cluster: no related rows",
        "deduplicate: same text as another row",
    ]
    page = (tmp_path / "clusters.html").read_text()
    assert page.count("<svg") == 3 and "<b>" not in page and "Sample clusters" in page
    assert '<h1 dir="auto">Clusters of pile</h1>' in page
    invoked("distill", clusters, "-o", distilled, "--extractive")
    written = table(distilled)
    assert sorted(source for row in written for source in row["sources"]) == sorted(
        row["id"] for row in table(clusters)
    )
    assert all(row["novelty"] in (0.0, None) for row in written)
    before = distilled.read_bytes()
    invoked("distill", clusters, "-o", distilled, "--extractive")  # all from the journal
    assert distilled.read_bytes() == before


def test_folders_of_the_outputs_are_made_before_the_work(tmp_path, monkeypatch):
    pile, made = write_rows(tmp_path / "pile.jsonl", raw_rows(range(4))), []
    output, page = tmp_path / "new dir" / "c.parquet", tmp_path / "pages" / "of today" / "c.html"

    def load(name=None):
        made.append(output.parent.is_dir() and (page.parent.is_dir() or not made))
        return HashingEncoder()

    monkeypatch.setattr("hf_lmmixup.encoder.load_encoder", load)
    invoked("cluster", pile, "-o", output)
    assert output.with_suffix(".html").is_file() and output.is_file()
    invoked("cluster", pile, "-o", output, "--report", page)
    assert page.is_file() and made == [True, True]


def test_select_and_merge(tmp_path):
    scored = [{**row, "id": f"{number}", "score": number % 6} for number, row in enumerate(raw_rows(range(12)))]
    rows = tmp_path / "rated.parquet"
    pq.write_table(pa.Table.from_pylist(scored), rows)
    invoked("select", rows, "-o", tmp_path / "best.parquet", "--size", 3)
    best = table(tmp_path / "best.parquet")
    assert [row["score"] for row in best] == [5, 5, 4]
    assert all(0 <= row["long_tail_score"] <= 1 for row in best)
    invoked("select", rows, "-o", tmp_path / "all.parquet", "--min-score", -1)
    assert len(table(tmp_path / "all.parquet")) == 12
    invoked(
        "merge", tmp_path / "best.parquet", tmp_path / "all.parquet", "-o", tmp_path / "out.parquet", "--share", 0.5
    )
    assert [row["origin"] for row in table(tmp_path / "out.parquet")].count("distilled") == 3


def test_stages_read_each_other_s_json_lines(tmp_path):
    """The same columns, types and values as by way of Parquet, from the first stage to the last."""
    rows = [
        {"id": f"{number}", **row, "score": number % 6 or None, "raw_score": 1, "tag": "x"}
        for number, row in enumerate(raw_rows(range(12)))
    ]
    start = tmp_path / "rated.parquet"
    types = {"score": pa.int32(), "raw_score": pa.int32()}
    columns = {name: pa.array([row[name] for row in rows], types.get(name, pa.string())) for name in rows[0]}
    pq.write_table(pa.table(columns), start)
    results = []
    for form in ("parquet", "jsonl"):
        names = ("clusters", "distilled", "best", "merged")
        clusters, distilled, best, merged = (tmp_path / f"{name}.{form}" for name in names)
        invoked("cluster", start, "-o", clusters, "--min-similarity", 0.8)
        invoked("distill", clusters, "-o", distilled, "--extractive")
        invoked("select", clusters, "-o", best, "--size", 5, "--min-score", -1)
        invoked("merge", best, distilled, "-o", merged)
        results.append([read_rows(path).dataset for path in (clusters, distilled, best, merged)])
    for known, found in zip(*results, strict=True):
        assert found.features == known.features
        assert found.to_list() == [approximately(row) for row in known.to_list()]
    best, merged = results[1][2:]
    assert {"score", "long_tail_score", "cluster_id"} <= set(best.column_names)
    assert None not in merged["source_scores"][:] and set(merged["origin"]) == {"original", "distilled"}


EMPTY = [
    ("cluster",),
    ("cluster", "--duplicates", "0.99"),
    ("select",),
    ("select", "--max-similarity", "0.9"),
    ("distill", "--extractive"),
    ("merge", "{rows}"),
]


@pytest.mark.parametrize("command", EMPTY, ids=" ".join)
def test_no_rows_in_are_no_rows_out(tmp_path, command):
    rows, output = tmp_path / "empty.parquet", tmp_path / "out.parquet"
    Dataset.from_dict({name: [] for name in CLUSTERED}, features=CLUSTERED).to_parquet(rows)
    name, *options = (one.format(rows=rows) for one in command)
    invoked(name, rows, *options, "-o", output)
    assert table(output) == [] and {"id", "prompt", "completion"} <= set(pq.read_schema(output).names)


def approximately(row):
    return {name: pytest.approx(value) if isinstance(value, float) else value for name, value in row.items()}


STAGED = {"id": "a", "prompt": " p", "completion": "c", "score": 3}
STRANGE = [  # a second row after one that a stage could have written
    {"id": 7, "prompt": "q", "completion": "c", "score": 3},
    {"prompt": "q", "completion": "c", "score": 3},
    {"id": "b", "prompt": "q", "completion": "c"},
    {"id": "b", "prompt": [{"role": "user", "content": "q"}], "completion": "c", "score": 3},
    {"id": "b", "prompt": "q", "completion": "c", "score": 3.5},
    {"id": "b", "prompt": "q", "completion": "c", "score": "good"},
    {"id": "b", "prompt": "q", "completion": "c", "score": 2**70},
    {"id": "b", "prompt": "q", "completion": "c", "score": 3, "source": "\ud800"},
]


@pytest.mark.parametrize("row", STRANGE)
def test_json_lines_of_strangers_are_raw_rows(tmp_path, row):
    for rows in ([STAGED, row], [row, STAGED]):
        found = read_rows(write_rows(tmp_path / "pile.jsonl", rows)).dataset
        assert found.features == LOADED and sorted(found["prompt"][:]) == ["p", "q"]


@pytest.mark.parametrize("wide", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_that_pandas_or_polars_wrote_keeps_its_columns(tmp_path, wide):
    row = {"id": "a", "prompt": "p", "completion": "c", "source_ids": ["x", "y"], "score": 3}
    plain = pa.Table.from_pylist([row])
    types = {**dict.fromkeys(("id", "prompt", "completion"), wide), "source_ids": pa.large_list(pa.large_string())}
    schema = pa.schema([(name, types.get(name, plain.schema.field(name).type)) for name in row])
    pq.write_table(plain.cast(schema), tmp_path / "rows.parquet")
    found = read_rows(tmp_path / "rows.parquet").dataset
    assert found.to_list() == [row] and found.features == Dataset(plain).features


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_rows_that_share_an_id_are_all_in_the_books(tmp_path, name):
    rows = [{"id": "x", **row, "score": score} for row, score in zip(raw_rows(range(4)), (5, 5, 1, 5), strict=True)]
    rows[3] |= {"prompt": rows[1]["prompt"], "completion": rows[1]["completion"]}
    if name == "rows.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text("oops\n" + "".join(json.dumps(row) + "\n" for row in rows))
    read = read_rows(tmp_path / name)
    pairs = [(row["prompt"], row["completion"]) for row in rows[:3]]
    assert read.dataset["id"][:] == [row_id(*pair) for pair in pairs] and read.dataset["score"][:] == [5, 5, 1]
    assert read.dropped == (
        {f"{name}:4": "duplicate"}
        if name == "rows.parquet"
        else {f"{name}:1": "not valid JSON", f"{name}:5": "duplicate"}
    )
    invoked("select", tmp_path / name, "-o", tmp_path / "out.parquet")
    assert len(table(tmp_path / "out.parquet")) == 2


@pytest.mark.parametrize("batch", [1, 2, 10])
def test_lines_that_cannot_be_read_are_counted_by_every_stage(tmp_path, monkeypatch, batch):
    monkeypatch.setattr("hf_lmmixup.stage_files.BATCH", batch)
    rows = [{"id": f"{i}", **row, "score": 5, "cluster_id": 0} for i, row in enumerate(raw_rows(range(3)))]
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows)
    path.write_text("oops\n" + path.read_text())
    for command in (["select", path], ["distill", path, "--extractive"], ["merge", path, path], ["cluster", path]):
        assert "dropped: not valid JSON" in invoked(*command, "-o", tmp_path / f"{command[0]}.parquet")
    assert len(read_rows(path, limit=3).dataset) == 2


@pytest.mark.parametrize(
    ("cluster_ids", "code", "message"),
    [
        ([0, 0, 1], 4, "Nothing came out: none of 2 clusters became a row."),
        ([None] * 3, 0, "dropped: distill: row has no cluster"),
        ([], 0, "What became of the rows"),
    ],
)
def test_clusters_none_of_which_became_a_row_are_a_failure(tmp_path, monkeypatch, caplog, cluster_ids, code, message):
    def unanswered(self, requests, stop=None):
        return (ChatReply(request.key, error="status 400 (no such field)", answered=False) for request in requests)

    monkeypatch.setattr("hf_lmmixup.endpoint.EndpointModel.replies", unanswered)
    rows = [
        {"id": f"{place}", "prompt": "p", "completion": "c", "cluster_id": x} for place, x in enumerate(cluster_ids)
    ]
    schema = pa.schema({"id": pa.string(), "prompt": pa.string(), "completion": pa.string(), "cluster_id": pa.int64()})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "clusters.parquet")
    served = ["--endpoint", "http://127.0.0.1:9/v1", "--model", "m"]
    command = ["distill", tmp_path / "clusters.parquet", "-o", tmp_path / "out.parquet", *served]
    assert message in invoked(*command, code=code)
    assert table(tmp_path / "out.parquet") == []
    assert ("m gave no good text for 2 requests: {'status 400 (no such field)': 2}" in caplog.text) == (code == 4)


IN_PLACE = [
    ("cluster", "{pile}", "-o", "{pile}"),
    ("select", "{pile}", "-o", "{pile}"),
    ("distill", "{pile}", "-o", "{pile}", "--extractive"),
    ("merge", "nothing.parquet", "{pile}", "-o", "{pile}"),
    ("merge", "{folder}", "{pile}", "-o", "{pile}"),
    ("rate", "{pile}", "-o", "{pile}", "--datastore", "bundled"),
]

WITHIN = [
    ("rate", "{folder}", "-o", "{folder}/rated.jsonl", "--datastore", "bundled"),
    ("merge", "{pile}", "{folder}", "-o", "{folder}/sub/o.parquet"),
    ("mosaic", "{folder}", "-o", "{folder}/o.jsonl", "--max-tokens", "none"),
    ("run", "extractive", "-i", "{folder}", "-o", "{folder}/run"),
    ("plan", "extractive", "-i", "{folder}", "-o", "{folder}/run"),
]

AT_HOME = [
    ("select", "{pile}", "--output=~/o.jsonl"),
    ("run", "extractive", "-i", "{pile}", "--output=~/run"),
    ("withdraw", "--run", "{folder}", "--source", "x", "--output=~/rest"),
    ("datastore", "build", "bundled", "--output=~/store"),
]

REFUSED = [
    (("cluster", "{pile}", "-o", "x.csv"), "Accepted outputs: .parquet, .jsonl"),
    (("cluster", "{pile}", "-o", "{folder}"), "folder.parquet is a folder. Name a file to write."),
    *((command, "begins with ~, which shells replace") for command in AT_HOME),
    *((command, "folder.parquet, whose files are read as rows") for command in WITHIN),
    (("cluster", "nofolder", "-o", "{out}"), "nofolder is neither a file nor a folder, nor found on the Hub"),
    (("cluster", "{pile}", "-o", "{pile}/o.parquet"), "File exists: "),
    (("cluster", "{pile}", "-o", "{pile}/a/o.parquet"), "Not a directory: "),
    (("run", "extractive", "-i", "{pile}", "-o", "{pile}"), "pile.jsonl is a file. Name a folder for the run."),
    (("run", "extractive", "-i", "{pile}", "-o", "{pile}/run"), "Not a directory: "),
    (
        ("distill", "{pile}", "-o", "{out}", "--extractive"),
        "has no column cluster_id with whole numbers. Make it with lmmixup cluster.",
    ),
    (("distill", "{pile}", "-o", "{out}"), "Give --model, or --extractive"),
    *((command, "pile.jsonl is the input, whose rows would be lost.") for command in IN_PLACE),
    (("distill", "{pile}", "-o", "{out}", "--extractive", "--endpoint", "http://127.0.0.1:9/v1"), "asks no server"),
    (("distill", "{pile}", "-o", "{out}", "--model", "m", "--encoder", "e"), "--encoder is for --extractive"),
    (("run", "extractive", "-i", "{pile}", "-o", "{out}", "--ray-address", "auto"), "are for --engine ray"),
    (("run", "extractive", "-i", "{pile}", "-o", "{out}", "--ray-actors", "8"), "are for --engine ray"),
    (("distill", "{pile}", "-o", "{out}", "--model", "m", "--temperature", "0"), "--temperature 0.0 must be above 0"),
    (("distill", "{pile}", "-o", "{out}", "--model", "m", "--temperature", "0.01"), "has no column cluster_id"),
    (("select", "{pile}", "-o", "{out}"), "has no column score. Make it with lmmixup rate."),
    # The pile has no clusters: what is refused here is refused before the rows are looked at.
    (("distill", "{pile}", "-o", "{out}", "--extractive", "--min-coverage", "2"), "faithfulness.min_coverage=2.0"),
    (("cluster", "{pile}", "-o", "{out}", "--min-size", "9"), "min_size=9, max_size=5"),
    (("merge", "{pile}", "{pile}", "-o", "{out}", "--share", "50"), "distilled_share=50.0 is not a share"),
    (("cluster", "{pile}", "-o", "{out}", "--report", "{pile}"), "pile.jsonl is a folder, or does not end in '.html'"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[" ".join(row[0][:1]) for row in REFUSED])
def test_what_cannot_be_done_is_said_in_one_message(tmp_path, arguments, message):
    places = {"pile": write_rows(tmp_path / "pile.jsonl", raw_rows(range(4))), "out": str(tmp_path / "o.parquet")}
    places["folder"] = tmp_path / "folder.parquet"
    places["folder"].mkdir()
    assert message in invoked(*(one.format(**places) for one in arguments), code=1)
    assert not (tmp_path / "o.parquet").exists() and not list(places["folder"].iterdir())


@pytest.mark.parametrize("command", [["rate", "--datastore", "bundled"], ["cluster"], ["datastore", "build"]])
def test_a_folder_that_cannot_be_written_to_is_named_before_the_work(tmp_path, monkeypatch, command):
    pile = write_rows(tmp_path / "pile.jsonl", [{**row, "score": 1} for row in raw_rows(range(4))])
    monkeypatch.setattr("os.access", lambda place, mode: place != tmp_path / "new")
    monkeypatch.setattr("hf_lmmixup.encoder.load_encoder", lambda *_: pytest.fail("work was done"))
    output = tmp_path / "new" if "build" in command else tmp_path / "new/o.parquet"
    assert f"Nothing can be written in {tmp_path / 'new'}." in invoked(*command, pile, "-o", output, code=1)


@pytest.mark.parametrize(
    ("numbers", "are_clusters"),
    [
        (["a", "a"], False),
        ([1.5, 1.5], False),
        ([0, 0], True),
        # pandas makes decimals of whole numbers beside a null
        ([0.0, None], True),
        (pa.array([None, None], pa.float64()), True),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_clusters_have_numbers(tmp_path, suffix, numbers, are_clusters):
    pile, output = tmp_path / f"pile{suffix}", tmp_path / "o.jsonl"
    write_staged(Dataset(scored(raw_rows(range(2)), cluster_id=numbers)), pile)
    said = invoked("distill", pile, "-o", output, "--extractive", code=0 if are_clusters else 1)
    assert output.exists() == are_clusters
    assert are_clusters or "has no column cluster_id with whole numbers" in said


OUT_OF_BOUNDS = [
    (("cluster", "--min-size", "9"), "min_size=9, max_size=5"),
    (("cluster", "--mean-size", "nan"), "mean_size=nan lies outside"),
    (("cluster", "--singletons", "lose"), "Unknown cluster.singletons='lose'"),
    (("cluster", "--duplicates", "2"), "--duplicates: max_similarity=2.0 is no cosine"),
    (("select", "--max-similarity", "2"), "max_similarity=2.0 is no cosine"),
    (("select", "--min-score", "9"), "min_score=9 is no score"),
]


@pytest.mark.parametrize(("arguments", "message"), OUT_OF_BOUNDS, ids=[" ".join(row[0]) for row in OUT_OF_BOUNDS])
def test_a_number_out_of_bounds_is_refused_before_rows_are_embedded(tmp_path, monkeypatch, arguments, message):
    def never(name=None):
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr("hf_lmmixup.encoder.load_encoder", never)
    scored = [{**row, "id": str(place), "score": 4} for place, row in enumerate(raw_rows(range(4)))]
    pile = write_rows(tmp_path / "pile.jsonl", scored)
    command, *options = arguments
    assert message in invoked(command, pile, "-o", tmp_path / "o.parquet", *options, code=1)


def scored(rows, **columns):
    """A table of rows with ids and columns of their own."""
    known = {
        "id": [f"{place:02}" for place in range(len(rows))],
        **{name: [row[name] for row in rows] for name in rows[0]},
    }
    return pa.table(known | columns)


def test_the_order_of_the_rows_has_no_influence(tmp_path):
    """Ninety rows that only their numbers tell apart, which the encoder does not see, in a graph 24 wide."""
    rows = [{"prompt": f"why {i % 3}", "completion": "sky\n" + " " * i + "blue"} for i in range(90)]
    table = scored(rows, score=[i % 6 for i in range(90)])
    written = []
    for order in (range(90), reversed(range(90))):
        pq.write_table(table.take(list(order)), tmp_path / "rows.parquet")
        invoked("cluster", tmp_path / "rows.parquet", "-o", tmp_path / "clusters.jsonl")
        invoked("cluster", tmp_path / "rows.parquet", "-o", tmp_path / "unique.jsonl", "--duplicates", "0.999")
        invoked("select", tmp_path / "rows.parquet", "-o", tmp_path / "best.jsonl", "--max-similarity", "0.9")
        names = ("clusters.jsonl", "clusters.html", "unique.jsonl", "unique.jsonl.dropped.json", "best.jsonl")
        written.append([(tmp_path / name).read_text() for name in names])
    assert written[0] == written[1]
    assert "null" not in written[0][0]  # each of them has a cluster


def test_rows_of_folders_and_arrays_keep_what_earlier_stages_wrote(tmp_path):
    table = scored(raw_rows(range(6)), score=[5, 4, 4, 1, 0, 2], sources=[["x", "y"]] * 6, long_tail_score=[0.5] * 6)
    rows = Dataset(table)
    (tmp_path / "run/dataset/data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "run/dataset/data/train-00000-of-00001.parquet")
    rows.save_to_disk(tmp_path / "saved")
    (tmp_path / "rows.json").write_text(json.dumps(table.to_pylist()))
    for name in ("run/dataset", "saved", "rows.json"):
        invoked("select", tmp_path / name, "-o", tmp_path / "best.parquet")
        assert sorted(pq.read_table(tmp_path / "best.parquet")["id"].to_pylist()) == ["00", "01", "02"]
        (tmp_path / "none.parquet").unlink(missing_ok=True)
        pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
        invoked("merge", tmp_path / "none.parquet", tmp_path / name, "-o", tmp_path / "all.parquet")
        assert [
            (row["id"], row["score"], row["sources"]) for row in pq.read_table(tmp_path / "all.parquet").to_pylist()
        ] == [(row["id"], row["score"], ["x", "y"]) for row in table.to_pylist()]


SCORES = [
    (pa.array([5.0, float("nan"), 4.0, 3.0]), 0, ["00", "02"]),  # not a number is no score
    (pa.array(["5", "4", "4", "1"]), 1, "The column score holds string, no numbers."),
    (pa.array([True, False, True, True]), 1, "The column score holds bool, no numbers."),
    (pa.nulls(4), 4, "Nothing came out: all 4 rows were dropped"),
]


@pytest.mark.parametrize(("scores", "code", "found"), SCORES)
def test_scores_of_strangers(tmp_path, scores, code, found):
    pq.write_table(scored(raw_rows(range(4)), score=scores), tmp_path / "rows.parquet")
    told = invoked("select", tmp_path / "rows.parquet", "-o", tmp_path / "best.parquet", code=code)
    if code:
        assert found in told
    else:
        assert sorted(row["id"] for row in table(tmp_path / "best.parquet")) == found


NOTHING = [
    ("cluster", "--singletons", "drop", "--min-similarity", "1"),
    ("select", "--min-score", "5"),
    ("merge", "{rows}", "--share", "0.5"),  # no distilled row has a text of its own
]


@pytest.mark.parametrize("command", NOTHING, ids=" ".join)
def test_nothing_left_of_some_rows_is_a_failure(tmp_path, command):
    rows = tmp_path / "rows.parquet"
    pq.write_table(scored(raw_rows([0, 3, 6, 9]), score=[1, 2, 3, 4]), rows)
    name, *options = (one.format(rows=rows) for one in command)
    told = invoked(name, rows, *options, "-o", tmp_path / "out.parquet", code=4)
    assert f"Nothing came out: all {8 if name == 'merge' else 4} rows were dropped" in told
    assert (
        table(tmp_path / "out.parquet") == []
        and len(json.loads((tmp_path / "out.parquet.dropped.json").read_text())) == 4
    )


def test_merge_counts_every_row_of_both_sides(tmp_path):
    """A row of each side under one id, and an unreadable line of each under one place."""
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        rows = [{"id": f"{i}", **row, "score": 5 - i} for i, row in enumerate(raw_rows(range(3)))]
        path = tmp_path / side / "rows.jsonl"
        write_rows(path, rows)
        path.write_text("oops\n" + path.read_text())
    told = invoked(
        "merge", tmp_path / "a/rows.jsonl", tmp_path / "b/rows.jsonl", "-o", tmp_path / "m.parquet", "--size", 2
    )
    assert len(table(tmp_path / "m.parquet")) == 2
    for reason, count in (
        ("not valid JSON", 2),
        ("merge: beyond the size or share", 1),
        ("merge: same text as an original", 3),
    ):
        assert f"dropped: {reason} │ {count} │" in told
    assert json.loads((tmp_path / "m.parquet.dropped.json").read_text()) == {
        "0": "merge: same text as an original",
        "1": "merge: same text as an original",
        "2": "merge: beyond the size or share; merge: same text as an original",
        "rows.jsonl:1": "not valid JSON; not valid JSON",
    }


def test_merge_says_which_side_has_no_scores(tmp_path):
    table = scored(raw_rows(range(4)), score=[5, 4, 4, 5])
    pq.write_table(table.slice(0, 2), tmp_path / "best.parquet")
    pq.write_table(table.slice(2).drop_columns(["score"]), tmp_path / "unrated.parquet")
    sides = (tmp_path / "best.parquet", tmp_path / "unrated.parquet", "-o", tmp_path / "m.parquet")
    told = invoked("merge", *sides, "--size", 2)
    assert "unrated.parquet has a score, so they rank last, by id." in told and "best.parquet has" not in told
    assert "rank last" not in invoked("merge", *sides)


def test_page_without_clusters():
    empty = {"mean": None, "edges": [], "counts": [], "quantiles": {}}
    points = {"id": [], "cluster_id": [], "x": [], "y": [], "fit": []}
    facts = {"rows": 0, "clustered": 0, "singletons": 0, "clusters": 0, "mean_size": None, "sizes": {}}
    page = render_inspection(facts | {"cohesion": empty, "map": points, "outliers": [], "samples": []}, "<none>")
    assert "&lt;none&gt;" in page
    assert ">Rows on the two directions" in page
    facts |= {"rows": 7, "mean_size": 2.5, "cohesion": empty | {"mean": 0.5}, "map": points, "samples": []}
    row = {"fit": 0.1, "cluster_id": 0, "id": "a", "prompt": "W" * 500}
    sample = {"cluster_id": 0, "kind": "loosest", "cohesion": 0.5, "members": [row | {"completion": "x"}]}
    page = " ".join(render_inspection(facts | {"outliers": [row], "samples": [sample]}, "pile").split())
    assert "</pre></td><td>" not in page  # side by side on a phone, both break within words
    assert "A cluster has 2.50 rows on average. Mean cosine" in page
    assert ">0 rows, drawn at random, on the two directions" in page
    assert f'<pre dir="auto">{"W" * 500}</pre>' in page and "pre { overflow-wrap: anywhere; }" in page
