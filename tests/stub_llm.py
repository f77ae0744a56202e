"""A deterministic OpenAI-compatible server on loopback with 38 kinds of fault, for tests (standard library only).

    python tests/stub_llm.py --port 8902 --fault-rate 0.3 --seed 7 --kinds 429,500,hang --latency 0.05
    curl -d '{"kind": "429", "match": "row 7", "times": 2}' 127.0.0.1:8902/__stub__/fault
    curl 127.0.0.1:8902/__stub__/stats
    curl -d '{"latency": 0.1}' 127.0.0.1:8902/__stub__/reset

An answer depends on the model and the sample only; a seeded fault depends on the seed, the prompt and how often that
prompt was asked: two runs of the same client meet the same faults in any order. The sample is the last
`<sample...>...</sample...>` of the last user message. Ratings follow `response_format.json_schema`, else four axes.
"""

import argparse
import hashlib
import json
import math
import re
import socket
import struct
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


TERMINAL = ("400_context", "401", "quota")
TRANSPORT = (
    *("429", "429_date", "429_bare", "500", "502_html", "503", "408", "hang"),
    *("reset", "truncated_body", "not_json_body", "no_choices", "slow"),
)
CONTENT = (
    *("malformed", "fenced", "prose", "think", "wrong_schema", "wrong_type", "out_of_range", "negative", "nan"),
    *("inf", "float", "bool", "dup_keys", "empty", "null", "cut", "refusal", "content_filter", "list", "deep"),
    *("huge", "nul_bidi"),
)
KINDS = (*TERMINAL, *TRANSPORT, *CONTENT)

AXES = ("rarity", "complexity", "informativeness", "overall")
LOW, HIGH = 1, 10

ERRORS = {
    "429": (429, "rate_limit_exceeded", "slow down"),
    "429_date": (429, "rate_limit_exceeded", "slow down"),
    "429_bare": (429, "rate_limit_exceeded", "slow down"),
    "quota": (429, "insufficient_quota", "You exceeded your current quota"),
    "500": (500, "server_error", "injected"),
    "503": (503, "server_error", "injected"),
    "408": (408, "server_error", "injected"),
    "400_context": (400, "context_length_exceeded", "This model's maximum context length is 4096 tokens"),
    "untaken": (400, "unsupported_parameter", "Unsupported parameter: '{field}' is not supported with this model."),
    "401": (401, "invalid_api_key", "Incorrect API key provided: {key}"),
}


def number(*parts):
    text = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def sample_of(prompt):
    found = re.findall(r"<(sample[-\w]*)>(.*?)</\1>", prompt, re.S)
    return found[-1][1].strip() if found else prompt.strip()


def quality(text):
    """0 to 1, by length, variety of words and a small jitter: enough to tell junk from prose."""
    words = re.findall(r"\w+", text)[:5000]
    if not words:
        return 0.0
    variety = len({word.lower() for word in words}) / len(words) * min(1.0, len(words) / 20)
    length = min(1.0, math.log1p(len(words)) / math.log1p(200))
    return min(1.0, 0.55 * length + 0.35 * variety + 0.1 * (number(text) % 1000) / 1000)


def ratings(request, text):
    """The four judgements of a text, under the names that the request's schema gives them."""
    form = request.get("response_format") or {}
    names = form["json_schema"]["schema"]["properties"] if form.get("type") == "json_schema" else AXES
    share = {name: quality(text) + (number(name, text) % 100 - 50) / 1000 for name in names}
    return {name: round(LOW + (HIGH - LOW) * min(1.0, max(0.0, value))) for name, value in share.items()}


def obeyed(prompt):
    """What a gullible model does: the number that an instruction outside every closed fence asks for."""
    rest = re.sub(r"<(sample[-\w]*)>.*?</\1>", " ", prompt, flags=re.S)
    found = re.search(r"(?i)ignore\b[^\n]{0,60}\binstructions\b[^\n]*?(\d+)", rest)
    return int(found[1]) if found else None


def spoiled(kind, rating):
    """Content, finish reason and refusal of a spoiled answer."""
    good = json.dumps(rating)
    each = lambda value: "{" + ", ".join(f"{json.dumps(key)}: {value}" for key in rating) + "}"  # noqa: E731
    content = {
        "malformed": good[:-1] + ",,",
        "fenced": f"```json\n{good}\n```",
        "prose": f"Sure! Here is my rating: {good} Let me know.",
        "think": f"<think>maybe {each(1)}?</think>\n{good}",
        "wrong_schema": '{"score_card": {"value": 3}}',
        "wrong_type": each('"seven"'),
        "out_of_range": each(HIGH + 1),
        "negative": each(-3),
        "nan": each("NaN"),
        "inf": each("1e400"),
        "float": each(HIGH - 0.5),
        "bool": each("true"),
        "dup_keys": "{" + f'"{next(iter(rating))}": {HIGH}, ' + good[1:],
        "empty": "",
        "null": None,
        "cut": good[: len(good) // 2],
        "refusal": None,
        "content_filter": "",
        "list": f"[{good}, {good}]",
        "deep": "[" * 100_000,
        "huge": good[:-1] + ', "why": "' + "A" * 5_000_000 + '"}',
        "nul_bidi": "\u202e\x00" + good,
    }
    finish = {"cut": "length", "content_filter": "content_filter"}.get(kind, "stop")
    return content[kind], finish, "I can't help with that." if kind == "refusal" else None


class State:
    """What the server has seen since the last reset."""

    def __init__(self):
        self.rules, self.used = [], Counter()
        self.attempts, self.paid, self.kinds = Counter(), Counter(), Counter()
        self.arrivals = []
        self.in_flight = self.peak = 0


class Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    lock = threading.Lock()
    state = State()
    options: argparse.Namespace
    started_with: argparse.Namespace

    def log_message(self, *args):
        pass

    def do_GET(self):
        with self.lock:
            seen = self.state
            stats = {
                "requests": sum(seen.attempts.values()),
                "prompts": len(seen.attempts),
                "max_attempts": max(seen.attempts.values(), default=0),
                "paid_twice": sum(count - 1 for count in seen.paid.values()),
                "in_flight": seen.in_flight,
                "peak_in_flight": seen.peak,
                "kinds": dict(seen.kinds),
                "arrivals": seen.arrivals[-1000:],
            }
        self.reply(200, stats)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = json.loads(body or b"{}")
        if self.path == "/__stub__/fault":
            with self.lock:
                self.state.rules.append(request)
            return self.reply(200, {})
        if self.path == "/__stub__/reset":  # with options by name, which then hold until the next reset
            with self.lock:
                Stub.state, Stub.options = State(), argparse.Namespace(**{**vars(self.started_with), **request})
            return self.reply(200, {})
        if self.path != "/v1/chat/completions":
            return self.error(404, "not_found", self.path)
        messages = request["messages"]
        prompt = next(message["content"] for message in reversed(messages) if message["role"] == "user")
        identity = f"{number(request.get('model'), json.dumps(messages, sort_keys=True)):016x}"
        with self.lock:
            seen = self.state
            seen.arrivals.append(time.monotonic())
            seen.attempts[identity] += 1
            seen.in_flight += 1
            seen.peak = max(seen.peak, seen.in_flight)
            kind = "untaken" if self.untaken(request) else self.pick(prompt, identity, seen.attempts[identity])
            seen.kinds[kind or "ok"] += 1
        try:
            self.answer(request, prompt, kind)
        except OSError:  # the client is gone
            self.close_connection = True
        finally:
            with self.lock:
                seen.in_flight -= 1

    def untaken(self, request):
        return next((field for field in self.options.lacks.split(",") if field in request), None)

    def pick(self, prompt, identity, attempt):
        for place, rule in enumerate(self.state.rules):
            due = attempt <= rule.get("times", 1) and self.state.used[place] < rule.get("total", 10**9)
            if due and re.search(rule.get("match", ""), prompt):
                self.state.used[place] += 1
                return rule["kind"]
        options = self.options
        if options.fault_rate and attempt <= options.max_faults:
            if number(options.seed, identity, attempt) % 10_000 < options.fault_rate * 10_000:
                kinds = options.kinds.split(",")
                return kinds[number(options.seed, "kind", identity, attempt) % len(kinds)]
        return None

    def answer(self, request, prompt, kind):
        if self.options.latency:
            time.sleep(self.options.latency)
        if kind in ERRORS:
            return self.fail(kind, request)
        if kind == "502_html":
            return self.reply(502, "<html><body>Bad gateway</body></html>", {"Content-Type": "text/html"})
        if kind == "hang":
            time.sleep(self.options.hang)
            self.close_connection = True
            return None
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
            self.connection.close()
            self.close_connection = True
            return None
        if kind == "not_json_body":
            return self.reply(200, "upstream said: OK")
        sample = sample_of(prompt)
        rating = ratings(request, sample)
        if self.options.gullible and (wanted := obeyed(prompt)) is not None:
            rating = dict.fromkeys(rating, wanted)
        content, finish, refusal = spoiled(kind, rating) if kind in CONTENT else (json.dumps(rating), "stop", None)
        message = {"role": "assistant", "content": content, "refusal": refusal}
        choices = [] if kind == "no_choices" else [{"index": 0, "finish_reason": finish, "message": message}]
        body = json.dumps({"object": "chat.completion", "model": request["model"], "choices": choices}).encode()
        if kind is None:
            with self.lock:
                self.state.paid[sample] += 1
        return self.deliver(body, kind)

    def fail(self, kind, request):
        status, code, text = ERRORS[kind]
        wait = self.options.retry_after
        headers = {
            "429": {"Retry-After": str(wait)},
            "429_date": {"Retry-After": formatdate(math.ceil(time.time() + wait), usegmt=True)},
            "503": {"Retry-After": str(wait)},
        }
        key = self.headers.get("Authorization", "")
        return self.error(status, code, text.format(key=key, field=self.untaken(request)), headers.get(kind))

    def deliver(self, body, kind):
        if kind == "truncated_body":
            self.reply(200, body[: len(body) // 2], missing=len(body) - len(body) // 2)
            self.close_connection = True
        elif kind == "slow":
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for start in range(0, len(body), 16):
                self.wfile.write(body[start : start + 16])
                time.sleep(self.options.hang / 10)
        else:
            self.reply(200, body)

    def error(self, status, code, message, headers=None):
        self.reply(status, {"error": {"message": message, "type": code, "code": code, "param": None}}, headers)

    def reply(self, status, body, headers=None, missing=0):
        content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) + missing))
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A client that was killed is no error of the server."""


def options(arguments=None):
    parser = argparse.ArgumentParser(description="A deterministic OpenAI-compatible server with faults.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--fault-rate", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-faults", type=int, default=3, help="attempts of a prompt after this one never fail")
    parser.add_argument("--kinds", default="429,500,503,reset,malformed,wrong_schema,out_of_range,empty,cut")
    parser.add_argument("--lacks", default="", help="fields of a request that the model does not take")
    parser.add_argument("--gullible", action="store_true", help="obey instructions outside a fence")
    parser.add_argument("--retry-after", type=float, default=1)
    parser.add_argument("--hang", type=float, default=60.0, help="seconds")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.kinds.split(",")) - set(KINDS):
        parser.error(f"unknown kinds {sorted(unknown)}; known: {', '.join(KINDS)}")
    return chosen


if __name__ == "__main__":
    Stub.options = Stub.started_with = options()
    server = Server(("127.0.0.1", Stub.options.port), Stub)
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)  # noqa: T201
    server.serve_forever()
