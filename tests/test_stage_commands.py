"""One stage each by the command: rows in, rows out, and what was dropped beside them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from borrowed_tools import raw_rows
from hashing_encoder import HashingEncoder
from test_modes import write_rows
from typer.testing import CliRunner

from hf_lmmixup.chat_model import ChatReply
from hf_lmmixup.cli import app
from hf_lmmixup.cluster_page import render_inspection


@pytest.fixture(autouse=True)
def hashing(monkeypatch):
    monkeypatch.setattr("hf_lmmixup.encoder.load_encoder", lambda name=None: HashingEncoder())


def lmmixup(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def table(path):
    return pq.read_table(path).to_pylist()


def test_one_stage_after_the_other(tmp_path):
    rows = [*raw_rows(range(12)), {"prompt": "zxcv <b>", "completion": "qwer uiop"}]
    pile = write_rows(tmp_path / "pile.jsonl", [*rows, {"prompt": "ZXCV  <b>", "completion": "qwer uiop"}])
    clusters, distilled = tmp_path / "clusters.parquet", tmp_path / "distilled.parquet"
    told = lmmixup("cluster", pile, "-o", clusters, "--duplicates", 0.999, "--singletons", "drop")
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
    lmmixup("distill", clusters, "-o", distilled, "--extractive")
    written = table(distilled)
    assert sorted(source for row in written for source in row["sources"]) == sorted(
        row["id"] for row in table(clusters)
    )
    assert all(row["novelty"] in (0.0, None) for row in written)
    before = distilled.read_bytes()
    lmmixup("distill", clusters, "-o", distilled, "--extractive")  # all from the journal
    assert distilled.read_bytes() == before


def test_select_and_merge(tmp_path):
    scored = [{**row, "id": f"{number}", "score": number % 6} for number, row in enumerate(raw_rows(range(12)))]
    rows = tmp_path / "rated.parquet"
    pq.write_table(pa.Table.from_pylist(scored), rows)
    lmmixup("select", rows, "-o", tmp_path / "best.parquet", "--size", 3)
    best = table(tmp_path / "best.parquet")
    assert [row["score"] for row in best] == [5, 5, 4]
    assert all(0 <= row["long_tail_score"] <= 1 for row in best)
    lmmixup("select", rows, "-o", tmp_path / "all.parquet", "--min-score", -1)
    assert len(table(tmp_path / "all.parquet")) == 12
    lmmixup(
        "merge", tmp_path / "best.parquet", tmp_path / "all.parquet", "-o", tmp_path / "out.parquet", "--share", 0.5
    )
    assert [row["origin"] for row in table(tmp_path / "out.parquet")].count("distilled") == 3


@pytest.mark.parametrize(
    ("cluster_ids", "code", "message"),
    [
        ([0, 0, 1], 4, "Nothing came out: none of 2 clusters became a row."),
        ([None] * 3, 0, "dropped: distil: row has no cluster"),
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
    assert message in lmmixup(*command, code=code)
    assert table(tmp_path / "out.parquet") == []
    assert ("m gave no good text for 2 requests: {'status 400 (no such field)': 2}" in caplog.text) == (code == 4)


REFUSED = [
    (("cluster", "{pile}", "-o", "x.csv"), "Accepted outputs: .parquet, .jsonl"),
    (("distill", "{pile}", "-o", "{out}", "--extractive"), "has no column cluster_id. Make it with lmmixup cluster."),
    (("distill", "{pile}", "-o", "{out}"), "Give --model, or --extractive"),
    (("distill", "{pile}", "-o", "{out}", "--extractive", "--endpoint", "http://127.0.0.1:9/v1"), "asks no server"),
    (("distill", "{pile}", "-o", "{out}", "--model", "m", "--temperature", "0"), "--temperature 0.0 must be above 0"),
    (("distill", "{pile}", "-o", "{out}", "--model", "m", "--temperature", "0.01"), "has no column cluster_id"),
    (("select", "{pile}", "-o", "{out}"), "has no column score. Make it with lmmixup rate."),
    (("cluster", "{pile}", "-o", "{out}", "--min-size", "9"), "min_size=9, max_size=5"),
    (("merge", "{pile}", "{pile}", "-o", "{out}", "--share", "50"), "distilled_share=50.0 is not a share"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[" ".join(row[0][:1]) for row in REFUSED])
def test_what_cannot_be_done_is_said_in_one_message(tmp_path, arguments, message):
    places = {"pile": write_rows(tmp_path / "pile.jsonl", raw_rows(range(4))), "out": str(tmp_path / "o.parquet")}
    assert message in lmmixup(*(one.format(**places) for one in arguments), code=1)
    assert not (tmp_path / "o.parquet").exists()


def test_page_without_clusters():
    empty = {"mean": None, "edges": [], "counts": [], "quantiles": {}}
    points = {"id": [], "cluster_id": [], "x": [], "y": [], "fit": []}
    facts = {"rows": 0, "clustered": 0, "singletons": 0, "clusters": 0, "mean_size": None, "sizes": {}}
    page = render_inspection(facts | {"cohesion": empty, "map": points, "outliers": [], "samples": []}, "<none>")
    assert "&lt;none&gt;" in page
