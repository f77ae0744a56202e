"""A Hugging Face Hub on loopback, good enough for `huggingface_hub`, `datasets`, `transformers`, `peft` and `trl`.

    with serve(tmp_path) as hub:
        api = HfApi(endpoint=hub.endpoint, token=WRITE_TOKEN)
        hub.faults.append(Fault("POST .*/commit/", mode="lose answer"))

It creates, stores and serves repositories, honors tokens and visibility, and misbehaves where a test says so. Programs
in other processes reach it through `HF_ENDPOINT`, set before they import anything.
"""

import json
import os
import re
import signal
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from loopback_routes import Routes
from loopback_store import Store
from loopback_transfers import Refused


WRITE_TOKEN, READ_TOKEN = "hf_loopbackwritetoken", "hf_loopbackreadtoken"
USERS = {WRITE_TOKEN: ("tester", "write"), READ_TOKEN: ("reader", "read")}


@dataclass
class Fault:
    """What goes wrong, with which requests.

    Attributes:
        match: Regular expression over `METHOD /path`.
        mode: `status` answers with `status`; `drop` closes the connection at once; `lose answer` does the work and
            then closes it; `truncate` sends half of the body; `corrupt` changes its first byte; `kill` ends the
            process `pid` before the work; `other writer` lets somebody else commit first.
        times: How many requests are hit.
        skip: How many matching requests pass first.
    """

    match: str = "."
    mode: str = "status"
    times: int = 1
    skip: int = 0
    status: int = 503
    headers: dict = field(default_factory=dict)
    pid: int | None = None

    def hits(self, line: str) -> bool:
        if not self.times or not re.search(self.match, line):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class LoopbackHub:
    """The state of a running server.

    Attributes:
        endpoint: Its address.
        requests: `METHOD /path` of every request so far.
        faults: What will go wrong.
        authorized: Whether each request carried a token.
    """

    def __init__(self, folder: Path):
        self.store = Store(folder)
        self.requests, self.authorized, self.faults = [], [], []
        self.endpoint = self.elsewhere = ""

    def commits(self, key: str) -> int:
        """Commits of a repository, the one that made it included."""
        return len(self.store.repositories[key]["commits"])


class Handler(Routes, BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each answer waits 40 ms for an acknowledgement

    def log_message(self, *arguments):
        pass

    def do_any(self):
        self.body = self.read_body()
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.user, self.role = USERS.get(token, (None, None))
        line = f"{self.command} {url.path}"
        with self.hub.store.lock:
            self.hub.requests.append(line)
            self.hub.authorized.append(bool(token))
            fault = next((fault for fault in self.hub.faults if fault.hits(line)), None)
        self.answer, self.mode = None, fault.mode if fault else ""
        if self.mode == "kill":
            os.kill(fault.pid, signal.SIGKILL)
        if self.mode in ("drop", "kill"):
            return self.hang_up()
        if self.mode == "status":
            return self.reply({"error": "injected"}, fault.status, fault.headers)
        if self.mode == "other writer":
            self.write_as_somebody(url.path)
        self.work(url.path)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_any

    def work(self, path):
        try:
            self.route(self.command, path)
        except Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self.reply({"error": refusal.message}, refusal.status, {k: v for k, v in headers.items() if v})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def write_as_somebody(self, path):
        """Commit one more file to the repository that a request is about."""
        store, key = self.hub.store, "/".join(path.split("/")[2:5])
        parent = store.resolve(key, "main")
        tree = store.repositories[key]["commits"][parent]["tree"] | {"other.txt": store.small_entry(b"theirs")}
        store.commit(key, "main", parent, tree, "by somebody else", "somebody")

    def read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def reply(self, content=b"", status=200, headers=None):
        """Send JSON or bytes, unless the answer shall be lost."""
        if self.mode == "lose answer":
            return self.hang_up()
        headers = dict(headers or {})
        if self.mode == "corrupt":
            content = b"?" + content[1:]
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.mode == "truncate" else content)
        if self.mode == "truncate":
            self.hang_up()

    def hang_up(self):
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    """Threads that do not outlive the test."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that went away in the middle of a request is no error of the server."""


@contextmanager
def serve(folder: Path):
    """Run a Hub in a thread; what it keeps lies in `folder`."""
    hub = LoopbackHub(folder)
    server = Server(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    # a second name for the same host, so that a token sent to the content host is seen
    hub.elsewhere = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
