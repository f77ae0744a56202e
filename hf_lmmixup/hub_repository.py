"""One repository of the Hub, brought to hold a publication: made, filled, read back, tagged, made public.

Every step looks first at what is there, so each can be repeated: after a lost answer, after another writer, after a
kill. The steps, for a repository that does not exist yet::

    claim -> tagged (is the tag free?) -> upload (one commit on top of the commit seen) -> read_back -> tag
          -> make_public, where asked for

Only `upload` writes files, and only as one commit with the seen commit as its parent: if anything was written in
between, the Hub answers 412 and the differences are taken anew.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from hf_lmmixup.patience import ATTEMPTS, insist, passes, wait
from hf_lmmixup.publication import Publication, PublishedFile


BRANCH = "main"


class PushError(RuntimeError):
    """The Hub refused, or does not hold what was sent; the message says what to do."""


class HubRepository:
    """The repository of a publication.

    Args:
        api: The Hub.
        publication: What it shall hold.
    """

    def __init__(self, api: HfApi, publication: Publication) -> None:
        self.api, self.publication = api, publication
        self.place: dict[str, Any] = {"repo_id": publication.repo_id, "repo_type": publication.repo_type}

    @property
    def url(self) -> str:
        """Its page."""
        kind = {"model": "", "dataset": "datasets/", "space": "spaces/"}[self.publication.repo_type]
        return f"{self.api.endpoint}/{kind}{self.publication.repo_id}"

    def claim(self, *, public: bool) -> bool:
        """Make the repository if needed; whether it is private."""
        try:
            insist(lambda: self.api.repo_info(**self.place))
        except RepositoryNotFoundError:
            sdk: dict[str, Any] = {"space_sdk": "static"} if self.publication.repo_type == "space" else {}
            insist(lambda: self.api.create_repo(**self.place, private=True, exist_ok=True, **sdk))
        private = bool(insist(lambda: self.api.repo_info(**self.place)).private)
        if not private and not public:
            raise PushError(
                f"{self.publication.repo_id} exists and is public. Nothing was sent. Say --public (public=True) to "
                "publish there for everybody, or choose another name."
            )
        return private

    def upload(self) -> tuple[str, int, tuple[str, ...], tuple[str, ...]]:
        """Commit what differs, in one commit on top of what was seen; look again after every failure."""
        sent: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        for attempt in range(ATTEMPTS):
            head = str(insist(lambda: self.api.repo_info(**self.place, revision=BRANCH)).sha)
            there = self.tree(head)
            new, old = self.differences(there)
            if not new and not old:
                return head, int(sent != ((), ())), *sent
            sent = tuple(file.name for file in new), tuple(old)
            try:
                self.commit(new, old, parent=head)
            except HTTPError as error:
                if not passes(error) or attempt == ATTEMPTS - 1:
                    raise
                wait(error, attempt)
        raise PushError(f"{self.publication.repo_id} kept changing while it was written to. Push again.")

    def commit(self, new: list[PublishedFile], old: list[str], *, parent: str) -> None:
        """Send files and delete others in one commit on top of `parent`, or fail if that is not the newest."""
        additions = [
            CommitOperationAdd(file.name, str(file.content) if isinstance(file.content, Path) else file.content)
            for file in new
        ]
        self.api.create_commit(
            **self.place,
            operations=[*additions, *(CommitOperationDelete(name) for name in old)],
            commit_message=f"{self.publication.kind.capitalize()} {self.publication.digest} by hf_lmmixup",
            parent_commit=parent,
            revision=BRANCH,
        )

    def tree(self, revision: str) -> dict[str, RepoFile]:
        """The Hub's files by name."""
        entries = insist(lambda: list(self.api.list_repo_tree(**self.place, recursive=True, revision=revision)))
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def differences(self, there: Mapping[str, RepoFile]) -> tuple[list[PublishedFile], list[str]]:
        """Files to send, and names of files to delete."""
        new = [file for file in self.publication.files if not _same(file, there.get(file.name))]
        names = {file.name for file in self.publication.files}
        old = [name for name in there if re.fullmatch(self.publication.replaces, name) and name not in names]
        return new, sorted(old)

    def read_back(self, commit: str) -> None:
        """Check the SHA-256 of every file: of large ones as the Hub says it, of small ones over their bytes."""
        there = self.tree(commit)
        for file in self.publication.files:
            entry = there.get(file.name)
            if entry is None:
                found = None
            elif entry.lfs is not None:
                found = entry.lfs.sha256
            else:
                url = hf_hub_url(**self.place, filename=file.name, revision=commit, endpoint=self.api.endpoint)
                found = hashlib.sha256(insist(partial(self.fetch, url))).hexdigest()
            if found != file.sha256:
                raise PushError(
                    f"{file.name} has SHA-256 {found} on the Hub instead of {file.sha256}. No tag was set. Push again."
                )

    def fetch(self, url: str) -> bytes:
        """The bytes of a small file."""
        response = get_session().get(url, headers=build_hf_headers(token=self.api.token), follow_redirects=True)
        hf_raise_for_status(response)
        return bytes(response.content)

    def tagged(self, name: str) -> str | None:
        """The commit that has the tag; None if there is no such tag.

        Raises:
            PushError: If the tag stands for other files.
        """
        tags = {tag.name: tag.target_commit for tag in insist(lambda: self.api.list_repo_refs(**self.place)).tags}
        if name in tags and self.differences(self.tree(tags[name])) != ([], []):
            raise PushError(f"The tag {name} of {self.publication.repo_id} stands for other files. Choose another.")
        return tags.get(name)

    def tag(self, name: str, commit: str) -> str:
        """Put the tag on the commit, unless it is on the same files already; the commit that has it."""
        for _ in range(ATTEMPTS):
            if (known := self.tagged(name)) is not None:
                return known
            # a tag that was set but whose answer was lost is found in the next round
            insist(lambda: self.api.create_tag(**self.place, tag=name, revision=commit, exist_ok=True))
        raise PushError(f"The Hub did not keep the tag {name} on {self.publication.repo_id}. Push again.")

    def make_public(self) -> bool:
        """Let everybody read it; whether it is private afterwards, which is never so."""
        insist(lambda: self.api.update_repo_settings(**self.place, private=False))
        private = bool(insist(lambda: self.api.repo_info(**self.place)).private)
        if private:
            raise PushError(f"The Hub did not make {self.publication.repo_id} public. Change it in its settings.")
        return private


def _same(file: PublishedFile, entry: RepoFile | None) -> bool:
    return entry is not None and file.same_as(entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
