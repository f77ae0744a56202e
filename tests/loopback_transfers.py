"""How the loopback Hub takes and gives files: what a commit does, large files, Xet, and parts of files."""

import base64
import fnmatch
import hashlib
import json
import re

from loopback_store import LARGE_FILES
from loopback_xet import materialize, store_folder


class Refused(Exception):
    """An answer that is an error of the caller."""

    def __init__(self, status, code="", message=""):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Transfers:
    """Answers about the content of files; see `Routes`."""

    def preupload(self, kind, repository, revision):
        _, _, sha, tree = self.place(kind, repository, revision, write=True)
        modes = []
        for file in json.loads(self.body)["files"]:
            large = file["size"] > 10_000_000 or b"\0" in base64.b64decode(file["sample"])
            large = large or any(fnmatch.fnmatch(file["path"], f"*.{suffix}") for suffix in LARGE_FILES)
            old = tree.get(file["path"])
            known = {"oid": old["lfs"] or old["oid"]} if old else {}
            mode = "lfs" if large else "regular"
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        self.reply({"files": modes, "commitOid": sha})

    def commit(self, kind, repository, revision):
        with self.hub.store.lock:
            key, record, parent, tree = self.place(kind, repository, revision, write=True)
            if revision not in record["branches"]:
                raise Refused(404, "RevisionNotFound", revision)
            tree, title = dict(tree), ""
            for line in filter(None, self.body.split(b"\n")):
                item = json.loads(line)
                if item["key"] == "header":
                    title = item["value"]["summary"]
                    if item["value"].get("parentCommit") not in (None, parent):
                        raise Refused(412, message="A commit has happened since. Please refresh and try again.")
                else:
                    self.apply(tree, item["key"], item["value"])
            sha = self.hub.store.commit(key, revision, parent, tree, title, self.user)
        url = f"{self.hub.endpoint}/{key.removeprefix('models/')}/commit/{sha}"
        self.reply({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def apply(self, tree, verb, value):
        path = value["path"]
        if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.rstrip("/").split("/")):
            raise Refused(400, message=f"bad path {path!r}")
        if verb == "file":
            tree[path] = self.hub.store.small_entry(base64.b64decode(value["content"]))
        elif verb == "lfsFile":
            target = self.hub.store.large(value["oid"])
            xet = materialize(self.hub.store.folder, value["oid"], target)
            if not target.exists():
                raise Refused(400, message=f"LFS object {value['oid']} was not uploaded")
            tree[path] = self.hub.store.large_entry(value["oid"], xet)
        elif verb == "deletedFile":
            if tree.pop(path, None) is None:
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
        else:
            raise Refused(400, message=f"unknown operation {verb}")

    def large_batch(self, kind, repository):
        self.place(kind, repository, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            missing = not self.hub.store.large(item["oid"]).exists()
            links = {
                "upload": {"href": f"{self.hub.elsewhere}/__large__/{item['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.endpoint}/__large__/{item['oid']}", "header": {}},
            }
            objects.append({**item, "actions": links} if missing else item)
        self.reply({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def xet_token(self, kind, repository, right, revision):
        self.place(kind, repository, write=right == "write")
        url, expiry = f"local://{store_folder(self.hub.store.folder)}", 4_102_444_800
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": expiry}
        self.reply({"casUrl": url, "accessToken": "t", "exp": expiry}, headers=headers)

    def large_object(self, oid):
        path = self.hub.store.large(oid)
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise Refused(400, message="sha256 mismatch")
            partial = path.with_name(f"{oid}.{id(self)}")
            partial.write_bytes(self.body)
            partial.replace(path)
            return self.reply()
        if self.command == "POST":
            return self.reply({}, 200 if path.exists() else 404)
        self.part(path.read_bytes(), {"ETag": f'"{oid}"'})

    def file(self, kind, repository, revision, path):
        key, _, sha, tree = self.place(kind, repository, revision)
        file = tree.get(path)
        headers = {"X-Repo-Commit": sha}
        if file is None:
            missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.reply({"error": "Entry not found"}, 404, headers | missing)
        headers["ETag"] = f'"{file["lfs"] or file["oid"]}"'
        if not file["lfs"]:
            return self.part(self.hub.store.blob(file["oid"]), headers)
        # a redirect to another host, with the metadata on the redirect itself
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": file["size"]}
        headers["Location"] = f"{self.hub.elsewhere}/__large__/{file['lfs']}"
        if file["xet"]:
            route = f"{self.hub.endpoint}/api/{key}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": file["xet"], "X-Xet-Refresh-Route": route}
        self.reply(b"", 302, headers)

    def part(self, data, headers):
        """The bytes that were asked for."""
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.reply(data, headers=headers)
        first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            return self.reply(b"", 416, {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.reply(data[first : last + 1], 206, headers)
