"""The adapters, the pace and the dispatch of questions; faults of a server are in test_rating_faults."""

import asyncio
import gc
import json
import random
import signal
import sys
import threading
import types
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_client import running_stub

from hf_lmmixup import dispatch, endpoint, pacing
from hf_lmmixup.chat_model import ChatReply, ChatRequest, ModelStopped, Stop
from hf_lmmixup.dispatch import ask_all, counted, finish_on_signals
from hf_lmmixup.endpoint import EndpointModel
from hf_lmmixup.journal import Journal
from hf_lmmixup.local_model import GeneratorModel, VLLMModel
from hf_lmmixup.pacing import Pacing, retry_after
from hf_lmmixup.rating_prompt import RATING_SCHEMA
from hf_lmmixup.transport import MAX_BODY_BYTES, _headers, _proxy, check_url, open_client
from hf_lmmixup.verdict import Verdict, error_body, judge_error, read_body


USER = [{"role": "user", "content": "hello"}]


class Scripted:
    """Answers each key with its next scripted reply; a text, or a ChatReply without its key."""

    name, settings = "scripted", {"model": "scripted"}

    def __init__(self, **script):
        self.script = {key: list(replies) for key, replies in script.items()}
        self.asked = []

    def replies(self, requests, stop=None):
        for request in requests:
            self.asked.append(request)
            reply = self.script[request.key].pop(0)
            if isinstance(reply, str):
                yield ChatReply(request.key, reply)
            else:
                yield ChatReply(request.key, **reply)


def questions(*keys, seed=None):
    return [ChatRequest(key, USER, seed) for key in keys]


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "j", {}) as opened:
        yield opened


# ---- dispatch ----


def test_answers_are_recorded_and_never_asked_again(journal):
    model = Scripted(a=["1"], b=["2"])
    answers = ask_all(model, questions("a", "b", "a"), json.loads, journal)
    assert (answers["a"], answers["b"]) == ((1, None), (2, None))
    again = Scripted(c=["3"])
    assert ask_all(again, questions("a", "b", "c"), json.loads, journal)["c"] == (3, None)
    assert [request.key for request in again.asked] == ["c"]


def test_an_unreadable_reply_is_asked_again_with_the_note_and_another_seed(journal):
    model = Scripted(a=["what?", "[", "7"])
    answers = ask_all(model, questions("a", seed=40), json.loads, journal, note="Once more, please.")
    assert answers["a"] == (7, None)
    assert [request.seed for request in model.asked] == [40, 41, 42]
    assert [request.messages[-1]["content"] for request in model.asked] == [
        "hello",
        "hello\n\nOnce more, please.",
        "hello\n\nOnce more, please.",
    ]


def read_never(text):
    raise ValueError("not what was asked")


def test_what_fails_every_time_keeps_the_last_reason_and_is_paid_for_once(journal):
    model = Scripted(a=["x"] * dispatch.MAX_ASKS, b=[{"error": "refusal"}] * dispatch.MAX_ASKS)
    answers = ask_all(model, questions("a", "b"), read_never, journal)
    assert (answers["a"], answers["b"]) == ((None, "not what was asked"), (None, "refusal"))
    again = Scripted()
    assert ask_all(again, questions("a", "b"), read_never, journal)["b"] == (None, "refusal")


CUT = {"error": "reply cut at the token limit"}
JAMS = [
    # replies in order of the keys; how many are recorded, or what is said
    (
        [CUT] * 40,
        "none of the first 32 questions got a reply that can be read; most often: reply cut at the token limit",
    ),
    ([CUT] * 40, r"Allow longer replies \(--max-new-tokens\).* will be asked again"),
    ([{"text": "what?"}] * 20 + [CUT] * 20, "most often: not what was asked. Look at what the model writes"),
    ([{"error": "refusal"}, {"text": "what?"}] * 33, "most often: not what was asked"),
    ([CUT] * 31, 31),
    ([CUT] * 31 + [{"text": "7"}] + [CUT] * 40, 72),
    ([{"error": "refusal"}] * 40, 40),  # about the rows: the model can be read
    ([CUT] * 31 + [{"error": "status 400", "answered": False}] * 9, 31),
]


def read_number(text):
    return int(text) if text.isdigit() else read_never(text)


@pytest.mark.parametrize(("replies", "outcome"), JAMS)
def test_a_model_whose_first_replies_cannot_be_read_is_stopped_and_asked_again(replies, outcome, journal):
    script = {f"k{place}": [reply] * dispatch.MAX_ASKS for place, reply in enumerate(replies)}
    if isinstance(outcome, int):
        ask_all(Scripted(**script), questions(*script), read_number, journal)
        assert len(journal) == outcome
        return
    with pytest.raises(ModelStopped, match=f"scripted: .*{outcome}"):
        ask_all(Scripted(**script), questions(*script), read_number, journal)
    assert {journal[key]["error"] for key in journal} <= {"refusal"}
    left = {key: ["7"] for key in script if key not in journal}
    ask_all(Scripted(**left), questions(*script), read_number, journal)
    assert len(journal) == len(script)


def test_a_run_that_goes_on_after_an_answer_is_not_stopped(journal):
    journal.add("old", {"answer": 1})
    script = {f"k{place}": [CUT] * dispatch.MAX_ASKS for place in range(40)}
    ask_all(Scripted(**script), questions("old", *script), read_number, journal)
    assert len(journal) == 41


@pytest.mark.parametrize(
    ("temperature", "where", "asked"),
    [
        (0.0, "", 3),
        (0.0, " while thinking", 1),
        (0.7, "", 5),
        (0.7, " while thinking", 5),
        (None, " while thinking", 5),
    ],
)
def test_a_cut_reply_is_asked_for_again_only_where_it_may_be_another_one(temperature, where, asked, journal):
    error = CUT["error"] + where
    model = Scripted(a=[{"error": error}] * 5)
    model.settings = {"temperature": temperature}
    assert ask_all(model, questions("a"), read_number, journal)["a"] == (None, error)
    assert len(model.asked) == asked


def test_what_got_no_answer_is_not_recorded_and_asked_again_by_the_next_run(journal):
    model = Scripted(a=[{"error": "status 500", "answered": False}], b=["2"])
    answers = ask_all(model, questions("a", "b"), json.loads, journal)
    assert answers["a"] == (None, "status 500") and answers.unanswered == {"a": "status 500"}
    assert ask_all(Scripted(a=["1"]), questions("a", "b"), json.loads, journal)["a"] == (1, None)


def test_reasons_that_differ_in_a_number_alone_are_counted_as_one():
    long = [f"status 400 (at most 4096 tokens, you sent {4096 + row}, request id a{row}-f)" for row in range(3)]
    assert counted(["status 429", *long, "status 500", "status 500"]) == {
        "status 400 (at most 4096 tokens, you sent ... request id ...": 3,
        "status 500": 2,
        "status 429": 1,
    }


def test_progress_counts_every_question_once(journal):
    journal.add("old", {"answer": 0})
    settled = []
    model = Scripted(a=["x", "1"], b=[{"error": "down", "answered": False}])
    ask_all(model, questions("old", "a", "b"), json.loads, journal, progress=settled.append)
    assert sum(settled) == 3


def test_questions_are_pulled_as_they_are_answered(journal):
    pulled = []

    def source():
        for number in range(100):
            pulled.append(number)
            yield ChatRequest(str(number), USER)

    class OneByOne(Scripted):
        def replies(self, requests, stop=None):
            for request in requests:
                assert len(pulled) == int(request.key) + 1
                yield ChatReply(request.key, "1")

    assert len(ask_all(OneByOne(), source(), json.loads, journal).journal) == 100


@pytest.mark.parametrize(
    ("number", "outcome"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["INT", "TERM"]
)
def test_a_signal_takes_effect_after_the_replies_in_flight_are_recorded(number, outcome, journal):
    class Interrupted(Scripted):
        def replies(self, requests, stop=None):
            first, second = next(requests), next(requests)
            signal.raise_signal(number)
            assert stop.is_set()
            yield ChatReply(first.key, "1")
            yield ChatReply(second.key, "2")
            assert next(requests, None) is None

    before = signal.getsignal(number)
    with pytest.raises(outcome) as caught:
        ask_all(Interrupted(), questions("a", "b", "c"), json.loads, journal)
    assert list(journal) == ["a", "b"]
    assert signal.getsignal(number) is before
    if outcome is SystemExit:
        assert caught.value.code == 143


def test_a_signal_is_heard_while_answers_are_passed_by(journal):
    journal.add("old", {"answer": 0})

    def source():
        yield from questions("old")
        signal.raise_signal(signal.SIGINT)
        yield from questions("old")
        raise AssertionError("pulled on")

    with pytest.raises(KeyboardInterrupt):
        ask_all(Scripted(), source(), json.loads, journal)


@pytest.mark.parametrize("watched", [False, True])
def test_a_second_ctrl_c_raises_where_it_comes_unless_that_is_watched(watched):
    passed, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), finish_on_signals() as stop:
        stop.watched = watched
        signal.raise_signal(signal.SIGINT)
        passed.append(stop.is_set() and not stop.at_once)
        signal.raise_signal(signal.SIGINT)
        passed.append(stop.at_once)
    assert passed == ([True, True] if watched else [True])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_amid_the_handling_of_the_first_is_the_second(monkeypatch):
    class Locking(Stop):
        """`Event.set` takes a lock that the thread which holds it would wait for without end."""

        entered = False

        def set(self):
            assert not self.entered
            self.entered = True
            signal.raise_signal(signal.SIGINT)
            super().set()

    monkeypatch.setattr(dispatch, "Stop", Locking)
    with pytest.raises(KeyboardInterrupt), finish_on_signals() as stop:
        stop.watched = True
        signal.raise_signal(signal.SIGINT)
        passed = stop.is_set() and stop.at_once
    assert passed


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with finish_on_signals() as stop:
            seen.append(stop.is_set())

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False] and signal.getsignal(signal.SIGINT) is before


# ---- endpoint ----


@pytest.fixture(scope="module")
def stub():
    with running_stub() as server:
        yield server


def test_an_endpoint_answers_every_request_once(stub):
    stub.reset()
    requests = [ChatRequest(str(number), [{"role": "user", "content": f"text {number}"}]) for number in range(20)]
    replies = list(EndpointModel("m", stub.url, concurrency=3).replies(requests))
    assert sorted(reply.key for reply in replies) == sorted(request.key for request in requests)
    assert all(set(json.loads(reply.text)) == set(RATING_SCHEMA["properties"]) for reply in replies)
    assert stub.stats()["peak_in_flight"] <= 3


def test_an_endpoint_works_where_a_loop_is_running_already(stub):
    async def in_a_notebook():
        return [reply.key for reply in EndpointModel("m", stub.url).replies(questions("a", "b"))]

    assert sorted(asyncio.run(in_a_notebook())) == ["a", "b"]


def test_what_a_server_is_told(monkeypatch):
    """The key and what is asked, nothing about this machine or account; and no request after a redirect."""
    monkeypatch.setenv("OPENAI_API_KEY", "odd/key")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-ours")
    told = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            address = f"http://127.0.0.1:{server.server_port}/odd%20path/v1"
            with pytest.raises(ModelStopped, match="307: the address redirects"):
                list(EndpointModel("m", address, concurrency=1).replies(questions("a", "b")))
        finally:
            server.shutdown()
    (path, headers, body), *others = told
    assert not others and path == "/odd%20path/v1/chat/completions"
    assert headers["Authorization"] == "Bearer odd/key" and headers["Accept-Encoding"] == "identity"
    assert not [name for name in headers if name.lower().startswith(("x-stainless", "openai-"))]
    told_openai = _headers(open_client("https://eu.api.openai.com/v1", "odd/key"))
    assert told_openai["OpenAI-Organization"] == "org-ours"
    assert json.loads(body) == {"model": "m", "temperature": 0.0, "max_tokens": 256, "messages": USER}


def test_a_router_that_reports_in_a_successful_response_is_asked_without_the_field():
    class Routing(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = {"error": {"code": 400, "message": "`temperature` is deprecated for this model."}}
            reply = json.dumps(said if "temperature" in request else GOOD).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Routing) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            model = EndpointModel("m", f"http://127.0.0.1:{server.server_port}/v1", concurrency=1)
            assert [reply.text for reply in model.replies(questions("a", "b"))] == ["7", "7"]
        finally:
            server.shutdown()


def test_objects_that_were_there_before_are_not_searched_for_garbage_during_a_run(stub):
    stub.reset()
    assert gc.get_freeze_count() == 0
    counts = [gc.get_freeze_count() for _ in EndpointModel("m", stub.url).replies(questions("a", "b"))]
    assert min(counts) > 1000 and gc.get_freeze_count() == 0
    gc.freeze()  # a program that does so itself keeps what it froze
    try:
        frozen = gc.get_freeze_count()
        assert list(EndpointModel("m", stub.url).replies(questions("a")))
        assert gc.get_freeze_count() == frozen
    finally:
        gc.unfreeze()


def test_rows_that_a_filter_refuses_one_after_the_other_stop_no_run(monkeypatch):
    async def refused(run, request):
        return Verdict(error="content filter")

    monkeypatch.setattr(endpoint._Run, "_attempt", refused)
    replies = EndpointModel("m", "http://127.0.0.1:9/v1", concurrency=1).replies(questions(*map(str, range(12))))
    assert [(reply.error, reply.answered) for reply in replies] == [("content filter", False)] * 12


def test_leaving_an_endpoint_early_closes_it(stub):
    stub.reset(latency=0.05)
    replies = EndpointModel("m", stub.url, concurrency=4).replies(questions(*map(str, range(20))))
    next(replies)
    replies.close()
    assert stub.stats()["requests"] <= 8


def test_an_error_of_the_caller_comes_through(stub):
    def broken():
        yield from questions("a")
        raise OSError("the rows are gone")

    with pytest.raises(OSError, match="the rows are gone"):
        list(EndpointModel("m", stub.url).replies(broken()))


def test_the_body_holds_what_was_asked_for_and_settings_hold_no_secret(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    model = EndpointModel("m", "http://localhost:1/v1/", temperature=None, max_tokens=9, extra={"top_p": 0.5})
    body = model.body_of(ChatRequest("a", USER, 7, {"type": "object"}))
    assert body == {
        "model": "m",
        "max_tokens": 9,
        "top_p": 0.5,
        "messages": USER,
        "seed": 7,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": {"type": "object"}},
        },
    }
    assert model.settings == {"model": "m", "max_tokens": 9, "top_p": 0.5, "structured": True}
    assert model.base_url == "http://localhost:1/v1"
    assert "secret" not in repr(vars(model))
    plain = EndpointModel("m", "http://localhost:1/v1", structured=False)
    assert set(plain.body_of(ChatRequest("a", USER, None, {}))) == {"model", "temperature", "max_tokens", "messages"}


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://api.example.org/v1/", "https://api.example.org/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://0.0.0.0:8000/v1", "http://0.0.0.0:8000/v1"),  # as vLLM and uvicorn print it
        ("http://10.0.0.5:8000/v1", None),  # rows and key unencrypted over a network
        ("http://api.example.org/v1", None),
        ("http://localhost.example.org/v1", None),
        ("https://user:hunter2@api.example.org/v1", None),
        ("https://api.example.org/v1?key=hunter2", None),
        ("ftp://api.example.org", None),
        ("api.example.org/v1", None),
        ("http://127.0.0.1:port/v1", None),
        ("http://127.0.0.1:80000/v1", None),
        ("http://[::1/v1", None),
        ("https://user:hunter2@api.example.org:port/v1", None),
        ("", None),
    ],
)
def test_where_data_may_go(url, allowed):
    if allowed:
        assert check_url(url, allow_http=False) == allowed
    else:
        with pytest.raises(ValueError, match="^The endpoint's address|unencrypted") as caught:
            check_url(url, allow_http=False)
        assert "hunter2" not in str(caught.value)
    assert check_url("http://10.0.0.5:8000/v1", allow_http=True)


@pytest.mark.parametrize(
    "key", ["sk-canary-012\n3456789", "\u201csk-canary-0123456789\u201d", "sk-canary\x7f0123456789"]
)
def test_a_key_with_characters_that_no_key_has_is_named_by_its_variable(key, stub, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ModelStopped, match="^The environment variable OPENAI_API_KEY holds more than a key. Set it"):
        list(EndpointModel("m", stub.url).replies(questions("a")))


@pytest.mark.parametrize("key", ["sk-canary-0123456789abcdef", "gsk_canary0123456789", "a b"])
def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated(key):
    with pytest.raises(ValueError, match="^The key's variable is the name of one, such as OPENAI_API_KEY") as caught:
        EndpointModel("m", "http://localhost/v1", key_variable=key)
    assert key not in str(caught.value)


def test_a_hosted_endpoint_needs_its_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ModelStopped, match="OPENAI_API_KEY is not set"):
        list(EndpointModel("m", "https://api.example.org/v1").replies(questions("a")))


@pytest.mark.parametrize("settings", [{"concurrency": 0}, {"timeout": 0}, {"timeout": float("nan")}])
def test_impossible_numbers_are_refused(settings):
    with pytest.raises(ValueError, match="must be at least 1"):
        EndpointModel("m", "http://localhost/v1", **settings)


def test_rows_for_this_machine_pass_no_proxy_and_netrc_replaces_no_key(stub, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ada password other\n")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789\n")  # as `cat` of a file gives it
    (reply,) = EndpointModel("m", stub.url, backoff=0.01).replies(questions("a"))
    assert reply.error is None and reply.text


def test_the_proxy_of_the_environment_serves_other_machines(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://ada:pw@proxy:3128")
    monkeypatch.setenv("no_proxy", "near.example.org,far.example.org:8443")
    found = [_proxy(f"https://{host}/v1") for host in ("a.example.org", "far.example.org", "[2001:db8::1]:8000")]
    assert found == ["http://ada:pw@proxy:3128"] * 3
    for host in ("near.example.org", "far.example.org:8443", "localhost:8000", "127.0.0.2", "[::1]:8000"):
        assert _proxy(f"https://{host}/v1") is None
    assert _proxy("http://a.example.org/v1") is None
    monkeypatch.setenv("https_proxy", "proxy:3128")
    assert _proxy("https://a.example.org/v1") == "http://proxy:3128"
    monkeypatch.setenv("https_proxy", "socks5://ada:pw@proxy:1080")
    with pytest.raises(ValueError, match="^https_proxy names no http proxy. Name one, or the endpoint's host in no"):
        _proxy("https://a.example.org/v1")


@pytest.mark.parametrize("name", ["ALL_PROXY", "http_proxy"])
def test_a_socks_proxy_of_the_environment_does_not_keep_anyone_from_this_machine(name, stub, monkeypatch):
    monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    (reply,) = EndpointModel("m", stub.url, backoff=0.01).replies(questions("a"))
    assert reply.error is None


def test_a_redirect_is_not_followed():
    verdict = judge_error(307, "", None)
    assert verdict.stops and "name the final one" in verdict.error


# ---- verdict ----

GOOD = {"choices": [{"message": {"content": "7"}, "finish_reason": "stop"}]}


def passing(error):
    return Verdict(error=error, passing=True)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"error": {"message": "no credits", "code": 402}},
            Verdict(error="402: payment is required (no credits)", stops=True),
        ),
        (
            {"error": {"message": "slow", "code": 429}},
            Verdict(error="status 429", passing=True, refused=True, said=" (slow)"),
        ),
        ({"error": "model is loading"}, passing("response has no message (model is loading)")),
        ({"error": {"message": "key odd:canary/0123456789"}}, passing("response has no message (key [secret])")),
        ({"code": 401, "msg": "token expired"}, passing("response has no message (token expired)")),
        ({"error": None, "choices": []}, passing("response has no message")),
        ({"error": {"code": True}}, passing("response has no message")),
    ],
)
def test_an_error_within_a_successful_response_is_told(body, expected):
    assert read_body(json.dumps(body).encode(), {"odd:canary/0123456789"}) == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"finish_reason": "length"}, Verdict("", "reply cut at the token limit while thinking", answered=True)),
        ({"finish_reason": "content_filter", "message": None}, Verdict(error="content filter", answered=True)),
        ({"finish_reason": "stop"}, passing("response has no message")),
        (
            {"finish_reason": "error", "error": {"code": 502, "message": "died"}, "message": {"content": "Q: half"}},
            Verdict(error="status 502", passing=True, said=" (died)"),
        ),
        (
            {"finish_reason": "insufficient_system_resource", "message": {"content": '{"overall"'}},
            passing("reply broken off by the server"),
        ),
    ],
)
def test_what_a_choice_without_a_whole_reply_means(choice, expected):
    assert read_body(json.dumps({"choices": [choice]}).encode()) == expected


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "7"}], "7"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "7"}], "7"),
        ([{"type": "text", "text": 7}, "7", None, {}], None),
        ([], None),
    ],
)
def test_a_reply_may_come_in_parts(content, text):
    error = None if text else "empty reply"
    body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
    assert read_body(json.dumps(body).encode()) == Verdict(text=text, error=error, answered=True)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (403, {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"], "flagged_input": "x"}}),
        (400, {"code": "content_filter", "message": "the prompt triggered the policy"}),
        (400, {"code": "data_inspection_failed", "message": "may be inappropriate"}),
    ],
)
def test_a_row_that_a_filter_refuses_ends_no_run(status, error):
    assert judge_error(status, {"error": error}, None) == Verdict(error="content filter")


def test_an_error_may_be_a_text():
    for body in ({"error": "no model m"}, {"detail": "no model m"}, {"message": "no model m"}):
        assert judge_error(400, body, None).error == "status 400 (no model m)"


@pytest.mark.parametrize(
    ("body", "error", "passing"),
    [
        (b"", "response is not JSON", True),
        (b"null", "response has no message", True),
        (b"[]", "response has no message", True),
        (b"[" * 200_000, "response is not JSON", True),
        (b'{"choices": {}}', "response has no message", True),
        (b'{"choices": [{"message": "7"}]}', "response has no message", True),
        (b'{"choices": [{"message": {"content": 7}}]}', "empty reply", False),
        (b'{"choices": [{"message": {"content": " \\n"}}]}', "empty reply", False),
        (json.dumps({"choices": [{"message": {"content": "x" * 20_001}}]}).encode(), "reply too long", False),
        (b"\xff\xfe", "response is not JSON", True),
    ],
)
def test_odd_bodies_become_reasons(body, error, passing):
    verdict = read_body(body)
    assert (verdict.text, verdict.error, verdict.passing, verdict.answered) == (None, error, passing, not passing)


@pytest.mark.parametrize("body", [b'data: {"choices": []}', b"event: x\ndata: {}", b": PROCESSING\n\ndata: {}"])
def test_a_stream_is_told_and_not_paid_for_again(body):
    verdict = read_body(body)
    assert verdict.error.startswith("response is a stream") and not (verdict.passing or verdict.answered)


def test_thoughts_do_not_make_a_reply_too_long():
    for content, error in [
        ("<think>" + "hm " * 9000 + "</think> 7", None),
        ("7</think>" + "x" * 20_001, "reply too long"),
    ]:
        body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
        assert read_body(json.dumps(body).encode()).error == error


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"tides \ud83d rise", "tides "),
        (r"\udc00", ""),
        (r"a\udc00\ud83d", "a"),  # the wrong way around
        (r"\ud83d\ude00 and \u0000", None),  # a pair is a letter
    ],
)
def test_a_lone_surrogate_spoils_a_reply_from_there_on(escaped, text):
    verdict = read_body(f'{{"choices": [{{"message": {{"content": "{escaped}"}}}}]}}'.encode())
    if text is None:
        assert verdict == Verdict(text="\U0001f600 and \0", answered=True)
    else:
        assert verdict == Verdict(text=text, error="reply holds a lone surrogate", answered=True)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (None, " while thinking"),
        ("", " while thinking"),
        (" <think>hm, let me", " while thinking"),
        ("<think>so 7</think>", ""),
        ('{"overall": ', ""),
    ],
)
def test_a_cut_reply_says_whether_it_had_begun(text, where):
    body = {"choices": [{"message": {"content": text}, "finish_reason": "length"}]}
    error = f"reply cut at the token limit{where}"
    assert read_body(json.dumps(body).encode()) == Verdict(text=text or "", error=error, answered=True)


@pytest.mark.parametrize("finish", [None, ["length"], {"length": 1}, 7, "anything"])
def test_an_odd_finish_reason_spoils_no_reply(finish):
    body = {"choices": [{"message": {"content": "7"}, "finish_reason": finish}]}
    assert read_body(json.dumps(body).encode()) == Verdict(text="7", answered=True)


def test_a_good_body_is_its_text():
    assert read_body(json.dumps(GOOD).encode()).text == "7"


@pytest.mark.parametrize(
    ("parts", "reasoning"),
    [
        ({"reasoning_content": "hm"}, "hm"),
        ({"reasoning_content": None, "reasoning": "hm"}, "hm"),
        ({"reasoning": " "}, None),
    ],
)
def test_thoughts_that_stand_beside_the_text_are_kept(parts, reasoning):
    body = {"choices": [{"message": {"content": "7", **parts}, "finish_reason": "stop"}]}
    assert read_body(json.dumps(body).encode()) == Verdict(text="7", answered=True, reasoning=reasoning)


@pytest.mark.parametrize(
    ("status", "body", "wait", "expected"),
    [
        (401, {"message": "no"}, None, "stops"),
        (403, None, None, "stops"),
        (404, {"error": {"message": "model m does not exist"}}, None, "stops"),
        (429, {"error": {"code": "insufficient_quota"}}, 1.0, "stops"),
        (429, {"type": "insufficient_quota"}, None, "stops"),
        (429, {}, 3600.0, "stops"),  # asks to wait longer than a run should sleep
        (429, {}, 2.0, "refused"),
        (429, {"error": {"code": "rate_limit_exceeded", "message": "Rate limit reached: Limit 9."}}, None, "refused"),
        (429, {"error": {"code": "rate_limit_exceeded", "message": "Request too large for m: Limit 9."}}, 1.0, "row"),
        (503, None, None, "refused"),
        (529, None, None, "refused"),
        (500, "<html>", None, "passing"),
        (408, None, None, "passing"),
        (400, {"error": {"message": "too long"}}, None, "row"),
        (413, None, None, "row"),
        (422, [1], None, "row"),
    ],
)
def test_what_error_statuses_mean(status, body, wait, expected):
    verdict = judge_error(status, body, wait)
    meaning = "stops" if verdict.stops else "refused" if verdict.refused else "passing" if verdict.passing else "row"
    assert meaning == expected and str(status) in verdict.error and verdict.wait in (wait, None)
    assert not verdict.answered and verdict.text is None


@settings(deadline=None, max_examples=50)
@given(
    st.integers(300, 599),
    st.recursive(
        st.none() | st.text() | st.integers() | st.booleans(),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["error", "message", "code", "type", "x"]), x),
    ),
)
def test_no_error_body_is_too_odd(status, body):
    assert len(judge_error(status, body, None).error) < 300


@pytest.mark.parametrize(
    ("status", "message", "field"),
    [
        (400, "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens'.", "max_tokens"),
        (400, "Unsupported value: 'temperature' does not support 0 with this model.", "temperature"),
        (422, "'response_format' of type 'json_schema' is not supported", "response_format"),
        (400, "seed: unsupported", "seed"),
        (400, "This response_format type is unavailable now", "response_format"),
        (400, "This model does not support response format `json_schema`.", "response_format"),
        (400, "invalid temperature: only 1 is allowed for this model", "temperature"),
        (400, "`temperature` is deprecated for this model.", "temperature"),
        (400, "Unrecognized request argument supplied: seed", "seed"),
        # how much, not whether
        (400, "max_tokens is too large: 99999. This model supports at most 16384 completion tokens.", None),
        (400, "Unsupported parameter: 'max_completion_tokens' is not supported.", None),
        # another field, and another kind of error
        (400, "Unsupported parameter: 'messages'", None),
        (429, "max_tokens is not supported", None),
    ],
)
def test_a_field_that_a_model_does_not_take(status, message, field):
    assert judge_error(status, {"error": {"message": message}}, None).untaken == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([{"error": {"code": 400, "message": 'Unknown name "seed": Cannot find field.'}}], "seed"),
        ({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 0}]}, "seed"),
        ({"message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}}, "seed"),
        ("Failed to read: response_format: unknown variant `json_schema`, expected `regex`", "response_format"),
        (
            {"error": {"message": "Provider returned error", "metadata": {"raw": "temperature is not supported"}}},
            "temperature",
        ),
    ],
)
def test_a_field_is_found_in_each_shape_of_an_error(body, field):
    verdict = judge_error(422, error_body(body.encode() if isinstance(body, str) else json.dumps(body).encode()), None)
    assert verdict.untaken == field and field in verdict.error


def test_a_page_is_no_message():
    for page in (b"<html>unsupported: seed</html>", b'{"error": "cut', b"", b"[" * 200_000):
        assert error_body(page) is None


def test_a_key_is_hidden_before_a_message_is_cut():
    key = "odd:canary/0123456789"
    for before in range(170, 201):  # the cut falls before, into and behind the key
        body = {"error": {"message": "x" * before + key}}
        assert "odd" not in judge_error(401, body, None, {key}).error


# ---- pace ----


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Wed, 01 Jan 2031 00:00:05 GMT", "date": "Wed, 01 Jan 2031 00:00:00 GMT"}, 5.0),
        ({"retry-after": "Wed, 01 Jan 2031 00:00:00 GMT", "date": "Wed, 01 Jan 2031 00:00:09 GMT"}, 0.0),
        ({"retry-after": "Wed, 01 Jan 2020 00:00:00 GMT"}, 0.0),  # no Date: this machine's clock
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers) == seconds


class Clock:
    """A clock that only moves while somebody sleeps."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(pacing.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(pacing.asyncio, "sleep", self.sleep)

    async def sleep(self, seconds):
        self.now += seconds


def waited(clock, waiting):
    begun = clock.now
    asyncio.run(waiting)
    return clock.now - begun


def never():
    return False


def test_a_pause_lasts_as_long_as_asked_and_then_ramps_up(monkeypatch):
    clock = Clock(monkeypatch)
    pace = Pacing(0.5, random.Random(0))
    assert waited(clock, pace.turn(never)) == 0
    waits = []
    for _ in range(200):
        clock.now = 1000.0
        pace.refused(4.0)
        waits.append(waited(clock, pace.turn(never)))
    assert min(waits) >= 4.0 and max(waits) <= 6.01
    assert max(waits) - min(waits) > 1.5  # spread over half the pause


def test_a_longer_pause_wins_and_a_shorter_one_changes_nothing(monkeypatch):
    clock = Clock(monkeypatch)
    pace = Pacing(0.5, random.Random(0))
    for wait in (3.0, 9.0, 1.0):
        pace.refused(wait)
    assert 9.0 <= waited(clock, pace.turn(never)) <= 13.6


@pytest.mark.parametrize("wait", [None, 0.0])
def test_unguided_pauses_grow_once_per_round_and_reset_after_a_success(wait, monkeypatch):
    clock = Clock(monkeypatch)
    pace = Pacing(1.0, random.Random(0))
    rounds = []
    for _ in range(7):
        for _ in range(64):  # all workers were refused at once
            pace.refused(wait)
        rounds.append(pace._open_at - clock.now)
        clock.now = pace._open_at
    assert rounds == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    pace.succeeded()
    pace.refused(wait)
    assert pace._open_at - clock.now == 1.0


def test_backing_off_is_bounded_and_jittered(monkeypatch):
    clock = Clock(monkeypatch)
    pace = Pacing(0.5, random.Random(0))
    for attempt, bound in [(1, 0.5), (3, 2.0), (9, 20.0)]:
        waits = [waited(clock, pace.back_off(attempt, never)) for _ in range(100)]
        assert 0 <= min(waits) < 0.2 * bound and 0.8 * bound < max(waits) <= bound + 1e-6


def test_waiting_ends_when_the_run_does(monkeypatch):
    clock = Clock(monkeypatch)
    pace = Pacing(0.5)
    pace.refused(300.0)
    assert waited(clock, pace.turn(lambda: clock.now > 1001)) < 1.2


# ---- models on this machine ----


def test_any_generating_function_is_a_chat_model(tmp_path):
    batches = []

    def shout(conversations):
        batches.append(len(conversations))
        texts = [conversation[-1]["content"] for conversation in conversations]
        return [None if text == "too long" else text.upper() for text in texts]

    model = GeneratorModel(shout, "shouter", settings={"max_new_tokens": 5}, batch_size=2)
    requests = [ChatRequest(text, [{"role": "user", "content": text}]) for text in ("a", "b", "too long")]
    replies = {reply.key: reply for reply in model.replies(requests)}
    assert (replies["a"].text, replies["b"].text, replies["too long"].text) == ("A", "B", None)
    assert replies["too long"].error and not replies["too long"].answered
    assert batches == [2, 1] and model.settings == {"model": "shouter", "max_new_tokens": 5}
    stop = threading.Event()
    stop.set()
    assert list(model.replies(requests, stop)) == []


@dataclass
class Parameters:
    temperature: float
    max_tokens: int
    seed: int | None
    structured_outputs: object


@dataclass
class Structured:
    json: dict


class FakeLLM:
    """What the adapter uses of vLLM's offline engine."""

    def __init__(self, **settings):
        self.settings, self.calls = settings, []

    def chat(self, conversations, sampling_params, use_tqdm):
        self.calls.append((conversations, sampling_params))
        texts = [conversation[-1]["content"] for conversation in conversations]
        written = [
            types.SimpleNamespace(text=text, finish_reason="length" if text == "long" else "stop") for text in texts
        ]
        return [types.SimpleNamespace(outputs=[one]) for one in written]


def test_vllm_is_asked_in_batches_with_seeds_and_schemas(monkeypatch):
    vllm, sampling = types.ModuleType("vllm"), types.ModuleType("vllm.sampling_params")
    vllm.LLM, vllm.SamplingParams, sampling.StructuredOutputsParams = FakeLLM, Parameters, Structured
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    model = VLLMModel("qwen", batch_size=2, engine={"tensor_parallel_size": 2})
    requests = [ChatRequest("a", USER, 3, {"type": "object"}), ChatRequest("b", USER), ChatRequest("c", USER)]
    requests[1] = ChatRequest("b", [{"role": "user", "content": "long"}])
    replies = list(model.replies(requests))
    assert [(reply.key, reply.error) for reply in replies] == [
        ("a", None),
        ("b", "reply cut at the token limit"),
        ("c", None),
    ]
    assert model._engine.settings == {
        "model": "qwen",
        "enable_prefix_caching": True,
        "seed": 0,
        "tensor_parallel_size": 2,
    }
    assert [len(conversations) for conversations, _ in model._engine.calls] == [2, 1]
    assert model._engine.calls[0][1][0] == Parameters(0.0, 256, 3, Structured({"type": "object"}))
    assert model._engine.calls[0][1][1].structured_outputs is None


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r'pip install "hf-lmmixup\[vllm\]"'):
        VLLMModel("qwen")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r'pip install "hf-lmmixup\[rate\]"'):
        list(EndpointModel("m", "http://localhost:1/v1").replies(questions("a")))


def test_the_caps_are_consistent():
    assert MAX_BODY_BYTES > 6 * 20_000  # a reply of MAX_REPLY_CHARACTERS, each escaped in six bytes
    assert endpoint.MAX_ATTEMPTS == 6
