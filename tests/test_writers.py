"""A recipe's writer: a server over real HTTP on loopback, from the command to the rows; what cannot be opened."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.parquet as pq
import pytest
from borrowed_tools import CopyingWriter, raw_rows
from conftest import invoked
from hashing_encoder import HashingEncoder
from test_modes import write_rows

from hf_lmmixup.recipe import DistillerRecipe
from hf_lmmixup.writers import count_bytes, open_writer


class Server(BaseHTTPRequestHandler):
    """Copies the first pair; every first greedy request about bread gets an answer that breaks off."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        (text,) = CopyingWriter().generate([body["messages"]])
        if "bread" in text and body["temperature"] == 0:
            text = text[:30]
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        reply = json.dumps({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *arguments):
        """Tests read their own output only."""


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as serving:
        serving.asked = []
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def test_clusters_are_distilled_by_a_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_lmmixup.encoder.load_encoder", lambda name=None: HashingEncoder())
    pile = write_rows(tmp_path / "pile.jsonl", raw_rows(range(16)))
    clusters, distilled = tmp_path / "clusters.parquet", tmp_path / "distilled.parquet"
    invoked("cluster", pile, "-o", clusters, "--singletons", "drop")
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    command = ("distill", clusters, "-o", distilled, "--endpoint", address, "--model", "copier")
    invoked(*command)
    rows = pq.read_table(distilled).to_pylist()
    numbers = set(pq.read_table(clusters)["cluster_id"].to_pylist())
    assert {row["cluster_id"] for row in rows} == numbers
    assert {row["distiller"] for row in rows} == {"copier"}
    again = [body for body in server.asked if body["temperature"] > 0]
    assert again and all("bread" in body["messages"][-1]["content"] and "seed" in body for body in again)
    assert len(server.asked) == len(numbers) + len(again)
    invoked(*command)  # everything is in the journal
    assert len(server.asked) == len(numbers) + len(again)


def test_long_clusters_are_split_by_bytes_where_no_tokenizer_is_at_hand():
    options = DistillerRecipe(model="m", endpoint="http://127.0.0.1:9/v1", max_prompt_tokens=10, max_new_tokens=7)
    writer = open_writer(options, "m")
    assert (writer.name, writer.max_prompt_tokens, writer.settings["max_new_tokens"]) == ("m", 10, 7)
    assert writer.count_tokens is count_bytes
    assert count_bytes([{"role": "system", "content": "x" * 5}, {"role": "user", "content": "y" * 4}]) == 3
    assert count_bytes([{"role": "user", "content": "\u6f6e\u6c50" * 5}]) == 10


def test_unencrypted_address_of_another_machine_is_refused():
    with pytest.raises(ValueError, match="allow"):
        open_writer(DistillerRecipe(model="m", endpoint="http://example.com/v1"), "m")
