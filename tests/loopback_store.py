"""What the loopback Hub keeps: blobs by git's SHA-1, large files by SHA-256, repositories, commits and references."""

import hashlib
import json
import threading
from pathlib import Path


LARGE_FILES = ("parquet", "arrow", "bin", "safetensors", "npz", "npy", "gz", "zip", "zst", "pkl", "faiss", "pt")
"""Suffixes that the Hub's default `.gitattributes` gives to LFS."""

DATE = "2026-01-01T00:00:00.000Z"


def blob_oid(data: bytes) -> str:
    """The name that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(oid: str, size: int) -> bytes:
    """The file that git holds in the place of a large one."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()


class Store:
    """Everything that the server remembers; repositories are kept under `datasets/OWNER/NAME` and the like."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = threading.RLock()
        self.repositories = {}
        for kind in ("blobs", "large"):
            (folder / kind).mkdir(parents=True)

    def large(self, oid: str) -> Path:
        assert len(oid) == 64 and set(oid) <= set("0123456789abcdef"), oid
        return self.folder / "large" / oid

    def blob(self, oid: str) -> bytes:
        return (self.folder / "blobs" / oid).read_bytes()

    def small_entry(self, data: bytes) -> dict:
        oid = blob_oid(data)
        (self.folder / "blobs" / oid).write_bytes(data)
        return {"oid": oid, "size": len(data), "lfs": None, "xet": None}

    def large_entry(self, oid: str, xet: str | None) -> dict:
        size = self.large(oid).stat().st_size
        return {"oid": blob_oid(pointer(oid, size)), "size": size, "lfs": oid, "xet": xet}

    def create(self, key: str, *, private: bool, user: str) -> None:
        rules = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_FILES)
        self.repositories[key] = {"private": private, "branches": {}, "tags": {}, "commits": {}}
        self.commit(key, "main", None, {".gitattributes": self.small_entry(rules.encode())}, "initial commit", user)

    def commit(self, key: str, branch: str, parent: str | None, tree: dict, title: str, user: str) -> str:
        repository = self.repositories[key]
        content = json.dumps([parent, tree, title, len(repository["commits"])], sort_keys=True)
        sha = hashlib.sha1(content.encode()).hexdigest()
        repository["commits"][sha] = {"parent": parent, "tree": tree, "title": title, "user": user, "date": DATE}
        repository["branches"][branch] = sha
        return sha

    def resolve(self, key: str, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit's own name stands for."""
        repository = self.repositories[key]
        name = revision.removeprefix("refs/heads/")
        known = repository["branches"] | repository["tags"] | {sha: sha for sha in repository["commits"]}
        return known.get(name)

    def files(self, key: str, revision: str = "main") -> dict[str, bytes]:
        """The content of every file at a revision."""
        tree = self.repositories[key]["commits"][self.resolve(key, revision)]["tree"]
        return {
            path: self.large(entry["lfs"]).read_bytes() if entry["lfs"] else self.blob(entry["oid"])
            for path, entry in tree.items()
        }
