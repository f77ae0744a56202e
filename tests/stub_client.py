"""Start `stub_llm.py` in a process of its own and talk to its admin routes."""

import json
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path


class StubClient:
    """A running stub server: `url` for the model's client, the rest for the test."""

    def __init__(self, url):
        self.url, self.root = url, url.removesuffix("/v1")

    def reset(self, **options):
        """Forget everything seen and every fault; the options hold until the next reset."""
        self._post("/__stub__/reset", options)

    def fault(self, kind, match="", times=1, **rule):
        """Spoil the first `times` attempts of every prompt that matches."""
        self._post("/__stub__/fault", {"kind": kind, "match": match, "times": times, **rule})

    def stats(self):
        with urllib.request.urlopen(f"{self.root}/__stub__/stats", timeout=120) as response:
            return json.load(response)

    def _post(self, path, body):
        with urllib.request.urlopen(self.root + path, json.dumps(body).encode(), timeout=120) as response:
            response.read()


@contextmanager
def running_stub():
    script = Path(__file__).with_name("stub_llm.py")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as server:
        try:
            yield StubClient(server.stdout.readline().strip())
        finally:
            server.kill()
