"""The routes of the loopback Hub: what each request of the Hub's clients asks for, and what it gets."""

import hashlib
import json
import re
from urllib.parse import parse_qs, unquote

import yaml
from loopback_transfers import Refused, Transfers


REPOSITORY = r"(?P<repository>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{REPOSITORY}"
FILES = rf"/(?:(?P<kind>datasets|spaces)/)?{REPOSITORY}"
REVISION = r"(?P<revision>[^/]+)"

ROUTES = [
    (re.compile(f"{methods} {path}"), name)
    for methods, path, name in [
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/validate-yaml", "validate_yaml"),
        ("POST", "/api/repos/create", "create"),
        ("GET|HEAD", rf"{API}(?:/revision/{REVISION})?", "info"),
        ("PUT", f"{API}/settings", "settings"),
        ("GET", f"{API}/refs", "references"),
        ("GET", f"{API}/commits/{REVISION}", "history"),
        ("GET", rf"{API}/xet-(?P<right>read|write)-token/{REVISION}", "xet_token"),
        ("POST", f"{API}/branch/(?P<name>.+)", "branch"),
        ("POST", f"{API}/tag/{REVISION}", "tag"),
        ("GET", rf"{API}/tree/{REVISION}(?P<path>/.*)?", "tree"),
        ("POST", f"{API}/paths-info/{REVISION}", "paths_info"),
        ("POST", f"{API}/preupload/{REVISION}", "preupload"),
        ("POST", f"{API}/commit/{REVISION}", "commit"),
        ("POST", rf"{FILES}\.git/info/lfs/objects/batch", "large_batch"),
        ("PUT|POST|GET|HEAD", "/__large__/(?P<oid>[0-9a-f]{64})", "large_object"),
        ("GET|HEAD", rf"{FILES}/(?:resolve|raw)/{REVISION}/(?P<path>.+)", "file"),
    ]
    for methods in [f"(?:{methods})"]
]


class Routes(Transfers):
    """Answers; the class that mixes this in reads the request and sends the reply."""

    def route(self, method, path):
        for pattern, name in ROUTES:
            if match := pattern.fullmatch(f"{method} {path}"):
                return getattr(self, name)(**{k: unquote(v) if v else v for k, v in match.groupdict().items()})
        raise Refused(404, message=f"The loopback Hub has no route {method} {path}")

    # Rights and places

    def writer(self):
        if self.user is None:
            raise Refused(401, message="Invalid credentials in Authorization header")
        if self.role != "write":
            raise Refused(403, message="The token has no write scope")

    def place(self, kind, repository, revision=None, *, write=False):
        """Key and record of a repository, with the commit of a revision and its files."""
        key = f"{kind or 'models'}/{repository}"
        record = self.hub.store.repositories.get(key)
        if record is None or (record["private"] and self.user is None):
            raise Refused(404 if self.user else 401, "RepoNotFound", "Repository not found")
        if write:
            self.writer()
        if revision is None:
            return key, record
        sha = self.hub.store.resolve(key, revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return key, record, sha, record["commits"][sha]["tree"]

    # Account and repository

    def whoami(self):
        if self.user is None:
            raise Refused(401, message="Invalid credentials in Authorization header")
        token = {"displayName": "test", "role": self.role}
        self.reply(
            {
                "type": "user",
                "name": self.user,
                "fullname": self.user,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        try:
            head = yaml.safe_load(content.split("---")[1])
            errors = [] if isinstance(head, dict) else [{"message": "the head is no mapping"}]
        except (yaml.YAMLError, IndexError) as error:
            errors = [{"message": str(error)}]
        self.reply({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self):
        self.writer()
        asked = json.loads(self.body)
        kind = f"{asked.get('type') or 'model'}s"
        key = f"{kind}/{asked.get('organization') or self.user}/{asked['name']}"
        url = f"{self.hub.endpoint}/{key.removeprefix('models/')}"
        if kind == "spaces" and asked.get("sdk") not in ("static", "gradio", "docker"):
            raise Refused(400, message="sdk is required")
        with self.hub.store.lock:
            if key in self.hub.store.repositories:
                return self.reply({"error": "You already created this repo", "url": url}, 409)
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.store.create(key, private=private, user=self.user)
        self.reply({"url": url, "name": key.partition("/")[2], "id": "0" * 24})

    def info(self, kind, repository, revision):
        _, record, sha, tree = self.place(kind, repository, revision or "main")
        self.reply(
            {
                "_id": "0" * 24,
                "id": repository,
                "modelId": repository,
                "author": repository.partition("/")[0],
                "sha": sha,
                "private": record["private"],
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(tree)],
                "cardData": self.card_data(tree),
                "lastModified": record["commits"][sha]["date"],
                "createdAt": record["commits"][sha]["date"],
            }
        )

    def card_data(self, tree):
        if "README.md" not in tree:
            return None
        parts = self.hub.store.blob(tree["README.md"]["oid"]).decode().split("---\n")
        return yaml.safe_load(parts[1]) if len(parts) > 2 else None

    def settings(self, kind, repository):
        _, record = self.place(kind, repository, write=True)
        asked = json.loads(self.body)
        if "visibility" in asked or "private" in asked:
            record["private"] = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.reply({"private": record["private"]})

    # References and history

    def references(self, kind, repository):
        _, record = self.place(kind, repository)
        listed = {
            name: [{"name": k, "ref": f"refs/{short}/{k}", "targetCommit": v} for k, v in record[name].items()]
            for name, short in (("branches", "heads"), ("tags", "tags"))
        }
        self.reply({**listed, "converts": [], "pullRequests": []})

    def history(self, kind, repository, revision):
        _, record, sha, _ = self.place(kind, repository, revision)
        commits = []
        while sha:
            commit = record["commits"][sha]
            commits.append({"id": sha, "title": commit["title"], "message": "", "date": commit["date"], "authors": []})
            sha = commit["parent"]
        self.reply(commits)

    def branch(self, kind, repository, name):
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        _, record, sha, _ = self.place(kind, repository, start, write=True)
        if name in record["branches"]:
            raise Refused(409, message="Reference already exists")
        record["branches"][name] = sha
        self.reply({})

    def tag(self, kind, repository, revision):
        _, record, sha, _ = self.place(kind, repository, revision, write=True)
        name = json.loads(self.body)["tag"]
        if name in record["tags"]:
            raise Refused(409, message="Tag reference exists already")
        record["tags"][name] = sha
        self.reply({})

    # Trees

    def entry(self, path, file):
        large = {"oid": file["lfs"], "size": file["size"], "pointerSize": 134} if file["lfs"] else None
        extra = {"lfs": large, "xetHash": file["xet"]}
        return {"type": "file", "path": path, "oid": file["oid"], "size": file["size"]} | {
            name: value for name, value in extra.items() if value
        }

    def tree(self, kind, repository, revision, path):
        _, record, sha, tree = self.place(kind, repository, revision)
        base = (path or "").strip("/")
        inside = f"{base}/" if base else ""
        names = folders(tree)
        if base and base not in names:
            raise Refused(404, "EntryNotFound", f"{base} not found")
        deep = self.query.get("recursive", "").lower() in ("true", "1")
        shown = [name for name in [*sorted(names), *sorted(tree)] if name.startswith(inside)]
        shown = [name for name in shown if deep or "/" not in name[len(inside) :]]
        entries = [self.entry(name, tree[name]) if name in tree else directory(name) for name in shown]
        if self.query.get("expand", "").lower() in ("true", "1"):
            commit = record["commits"][sha]
            last = {"lastCommit": {"id": sha, "title": commit["title"], "date": commit["date"]}}
            entries = [entry | last for entry in entries]
        self.reply(entries)

    def paths_info(self, kind, repository, revision):
        *_, tree = self.place(kind, repository, revision)
        as_json = "json" in self.headers.get("Content-Type", "")
        paths = json.loads(self.body)["paths"] if as_json else parse_qs(self.body.decode()).get("paths", [])
        found = [self.entry(path, tree[path]) for path in paths if path in tree]
        self.reply(found + [directory(path.strip("/")) for path in paths if path.strip("/") in folders(tree)])


def folders(tree):
    """Every folder that has a file."""
    return {"/".join(path.split("/")[:depth]) for path in tree for depth in range(1, path.count("/") + 1)}


def directory(path):
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
