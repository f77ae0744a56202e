"""A Hugging Face Hub on loopback that serves one dataset repository from a folder, for reading only."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


COMMIT = "0123456789abcdef" * 2 + "01234567"


class RepositoryHandler(BaseHTTPRequestHandler):
    """Answers the four questions that a reader asks: the repository, its tree, a file's head, a file."""

    repository: str
    folder: Path
    requests: list

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        api, resolve = f"/api/datasets/{self.repository}", f"/datasets/{self.repository}/resolve/"
        if path.startswith(f"{api}/tree/"):
            inside = path.removeprefix(f"{api}/tree/").partition("/")[2]
            self.send(json.dumps(tree(self.folder, inside)).encode(), body)
        elif path == api or path.startswith(f"{api}/revision/"):
            names = [{"rfilename": entry["path"]} for entry in tree(self.folder, "") if entry["type"] == "file"]
            self.send(json.dumps({"id": self.repository, "sha": COMMIT, "siblings": names}).encode(), body)
        else:
            file = self.folder / path.removeprefix(resolve).partition("/")[2]
            self.send(file.read_bytes() if path.startswith(resolve) and file.is_file() else None, body)

    def send(self, content, body):
        status, headers = 200, {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if content is None:
            status, content = 404, b'{"error": "not here"}'
            headers["X-Error-Code"] = "EntryNotFound"
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        part = self.headers.get("Range")
        if part and status == 200:
            first, _, last = part.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
            content, status = content[int(first) : end + 1], 206
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def serve(repository: str, folder: Path):
    """Serve `folder` as the dataset `repository`; yields the endpoint and the list of requests."""
    requests = []

    handler = type("Handler", (RepositoryHandler,), {"repository": repository, "folder": folder, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def tree(folder: Path, inside: str) -> list[dict]:
    """The listing of the Hub: everything below a folder, with size and object id."""
    entries = []
    for path in sorted((folder / inside).rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            entries.append({"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
        else:
            content = path.read_bytes()
            entries.append(
                {"type": "file", "path": name, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
            )
    return entries
