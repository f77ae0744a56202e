"""The tests' side of `hub_worker.py`."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from loopback_hub import WRITE_TOKEN


class Raised(Exception):
    """An error of a call, with the name of its class first."""


class Client:
    """Calls functions of the worker, each in a process of its own."""

    def __init__(self, process, folder):
        self.process, self.folder, self.home = process, folder, folder / "home"

    def call(self, name, *arguments, xet=False, before=None, **options):
        """What a function returns; None if its process was killed.

        Args:
            name: The function.
            arguments: Its arguments.
            xet: Whether files go through Xet.
            before: Called with the id of the process before it starts.
            options: Its named arguments.
        """
        call = {"name": name, "arguments": arguments, "options": options, "xet": xet, "home": str(self.home)}
        self.say(json.dumps(call, default=str))
        pid = self.hear()["pid"]
        if before is not None:
            before(pid)
        self.say("go")
        result = self.hear()
        if "status" in result:
            return None
        self.hear()
        if "raised" in result:
            raise Raised(f"{result['raised']}: {result['message']}")
        return result["returned"]

    def say(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        assert line, (self.folder / "stderr").read_text()
        return json.loads(line)


@contextmanager
def client_of(hub, folder: Path, token: str = WRITE_TOKEN, imports: str = ""):
    """A client of a Hub, with an empty cache of its own; `folder/log` is everything that it logged."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": token,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "WORKER_LOG": str(folder / "log"),
        "WORKER_IMPORTS": imports,
    }
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("hub_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
    client = Client(process, folder)
    try:
        assert client.hear() == {"ready": True}
        yield client
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
