import json
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from datasets import Dataset

from hf_lmmixup.chat_model import ChatReply, ModelStopped
from hf_lmmixup.distillation import NO_COMPLETION, distill
from hf_lmmixup.endpoint import EndpointModel
from hf_lmmixup.journal import Journal
from hf_lmmixup.prompts import format_completion, until_answer_ends
from hf_lmmixup.served_generation import VLLM_STOP, ServedGenerator


GOOD = format_completion("both ask about tides", "Q: What causes tides?\nA: The Moon.")


class Served:
    """A chat model in memory: replies by a word of the prompt, in reverse order."""

    name, settings = "served", {}

    def __init__(self, **replies):
        self.known, self.seeds = replies, []

    def replies(self, requests, stop=None):
        taken = list(requests)
        self.seeds.append([request.seed for request in taken])
        for request in reversed(taken):
            content = request.messages[-1]["content"]
            yield ChatReply(request.key, **next(reply for word, reply in self.known.items() if word in content))


def ask(*words):
    return [[{"role": "user", "content": f"merge {word}"}] for word in words]


def test_completions_come_back_in_order_and_end_with_the_answer():
    told = []
    model = Served(one={"text": GOOD + "\nAnything else?"}, two={"text": "junk"})
    texts = ServedGenerator(model).generate(ask("one", "two"), on_reply=lambda *reply: told.append(reply))
    assert texts == [GOOD, "junk"]
    assert told == [(1, "junk"), (0, GOOD)]  # as they came
    assert model.seeds == [[None, None]]


@pytest.mark.parametrize(
    ("text", "reasoning", "whole"),
    [
        ("<answer>a</answer>", "why", "<think>why</think>\n<answer>a</answer>"),  # the server parses thoughts
        ("why</think>\n<answer>a</answer>", None, "<think>why</think>\n<answer>a</answer>"),  # the template opens them
        (GOOD, "thoughts of another kind", GOOD),
        ("<answer>a</answer>", None, "<answer>a</answer>"),
    ],
)
def test_reasoning_that_came_apart_from_the_answer_is_put_back(text, reasoning, whole):
    assert ServedGenerator(Served(x={"text": text, "reasoning": reasoning})).generate(ask("x")) == [whole]


def test_an_unusable_answer_is_told_and_an_unanswered_request_is_not(caplog):
    told = []
    model = Served(refused={"error": "refusal"}, down={"error": "503", "answered": False})
    texts = ServedGenerator(model).generate(ask("refused", "down"), on_reply=lambda *reply: told.append(reply))
    assert texts == [None, None] and told == [(0, None)]
    assert "served left 1 of 2 requests unanswered" in caplog.text


def test_why_there_is_no_text_is_counted(caplog):
    bad = {"error": "status 400 (max_tokens)", "answered": False}
    model = Served(cut={"error": "reply cut at the token limit"}, bad=bad, good={"text": GOOD})
    ServedGenerator(model).generate(ask("bad", "cut", "good", "bad"))
    reasons = "{'status 400 (max_tokens)': 2, 'reply cut at the token limit': 1}"
    assert f"served gave no good text for 3 requests: {reasons}" in caplog.text


def test_good_texts_bring_no_warning(caplog):
    ServedGenerator(Served(good={"text": GOOD})).generate(ask("good"))
    assert not caplog.records


def test_seeds_go_to_the_model_that_samples():
    greedy, sampling = Served(one={"text": "1"}), Served(one={"text": "2"})
    generator = ServedGenerator(greedy, sampling)
    assert generator.generate(ask("one")) == ["1"]
    assert generator.generate(ask("one"), seeds=[7]) == ["2"]
    assert (greedy.seeds, sampling.seeds) == ([[None]], [[7]])
    with pytest.raises(ValueError, match="1 seeds for 2 conversations"):
        generator.generate(ask("one", "one"), seeds=[7])


class Interrupted(Served):
    """The user presses Ctrl-C while the first request is in flight."""

    def replies(self, requests, stop=None):
        for request in requests:
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set()
            yield ChatReply(request.key, "done")


def test_ctrl_c_lets_the_requests_in_flight_finish():
    told = []
    with pytest.raises(KeyboardInterrupt):
        ServedGenerator(Interrupted()).generate(ask("a", "b"), on_reply=lambda *reply: told.append(reply))
    assert told == [(0, "done")]


@pytest.mark.parametrize(
    ("first", "asked"), [(GOOD + "\nAnything else, or", 1), ("<think>round and round and", 2), (None, 2)]
)
def test_a_cut_reply_counts_if_its_answer_is_whole_and_is_asked_for_again_if_not(server, tmp_path, first, asked):
    server.first, server.finish = first, "length"
    with Journal(tmp_path / "j", {}) as journal:
        outcome = distill(rows("tides"), generator_at(server).generate, distiller_name="m", journal=journal)
    assert outcome.dataset["completion"][:] == ["The Moon."] and len(server.bodies) == asked


class Handler(BaseHTTPRequestHandler):
    """An OpenAI-compatible server: malformed at temperature 0, good above; it stops where it is told to."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if "forbidden" in body["messages"][-1]["content"]:
            return self._send(401, {"error": {"code": "invalid_api_key", "message": "no"}})
        text = GOOD + "\nMore text." if body["temperature"] else self.server.first
        finish = "stop" if body["temperature"] else self.server.finish
        if finish == "stop" and body.get("include_stop_str_in_output"):
            text = text.partition(body["stop"][0])[0] + body["stop"][0]
        message = {"role": "assistant", "content": text}
        return self._send(200, {"choices": [{"index": 0, "message": message, "finish_reason": finish}]})

    def _send(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.bodies, running.first, running.finish = [], "<think>cut", "stop"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def rows(*prompts):
    return Dataset.from_dict(
        {
            "id": [f"r{i}" for i in range(len(prompts))],
            "prompt": list(prompts),
            "completion": ["x"] * len(prompts),
            "score": [1] * len(prompts),
            "cluster_id": list(range(len(prompts))),
        }
    )


def generator_at(server):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return ServedGenerator(
        EndpointModel("m", url, max_tokens=64, extra=VLLM_STOP),
        EndpointModel("m", url, max_tokens=64, temperature=0.7),
    )


def test_an_instruct_model_behind_an_endpoint_distils_without_training(server, tmp_path):
    generator = generator_at(server)
    with Journal(tmp_path / "j", {}) as journal:
        outcome = distill(rows("tides"), generator.generate, distiller_name=generator.name, journal=journal)
        assert len(journal) == 2
    assert outcome.dataset[0]["completion"] == "The Moon." and outcome.dataset[0]["distiller"] == "m"
    first, second = server.bodies
    assert first["stop"] == ["</answer>"] and "seed" not in first
    assert second["temperature"] == 0.7 and second["seed"] > 0


def test_a_refused_key_stops_the_run_and_leaves_the_journal_open_for_the_next(server, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    generator = ServedGenerator(EndpointModel("m", url, temperature=0.7, concurrency=1))
    data = rows("tides", "forbidden")
    with Journal(tmp_path / "j", {}) as journal:
        with pytest.raises(ModelStopped):
            distill(data, generator.generate, distiller_name="m", journal=journal)
        assert len(journal) == 1


def test_an_unanswered_cluster_is_asked_again_by_the_next_run(tmp_path):
    down, up = {"error": "503", "answered": False}, {"text": GOOD}
    with Journal(tmp_path / "j", {}) as journal:
        generate = ServedGenerator(Served(tides=down)).generate
        outcome = distill(rows("tides"), generate, distiller_name="m", journal=journal)
        assert outcome.dropped == {"r0": NO_COMPLETION} and len(journal) == 0
        outcome = distill(
            rows("tides"), ServedGenerator(Served(tides=up)).generate, distiller_name="m", journal=journal
        )
        assert len(outcome.dataset) == 1


@pytest.mark.parametrize(("first", "asked"), [(GOOD.replace("Moon", "Moon \ud83d"), 2), (GOOD + "\ud83d", 1)])
def test_half_a_letter_in_a_reply_is_malformed_and_asked_again_unless_it_stands_after_the_answer(
    server, tmp_path, first, asked
):
    server.first = first
    generator = generator_at(server)
    with Journal(tmp_path / "j", {}) as journal:
        outcome = distill(rows("tides"), generator.generate, distiller_name="m", journal=journal)
    assert outcome.dataset["completion"][:] == ["The Moon."] and len(server.bodies) == asked


@pytest.mark.parametrize("text, kept", [(" a </answer> b", "a </answer>"), ("no tag ", "no tag"), ("", "")])
def test_text_after_the_answer_goes(text, kept):
    assert until_answer_ends(text) == kept
