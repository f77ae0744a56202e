"""What leaves the machine: the named files of one artifact, each with the digests by which the Hub is checked.

Nothing is published because it lies in a folder; a file leaves only if its name is on the artifact's list, it is a
regular file reached without a symbolic link, and it holds no token. One file::

    PublishedFile(name="data/train-00000-of-00001.parquet", content=Path("runs/pile/dataset/data/..."), size=81220,
                  sha256="5f1d...", blob="9c1f...")
"""

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hf_lmmixup.secrecy import holds_secret


NAME_PART = re.compile(r"[A-Za-z0-9._-]{1,96}")
"""What a folder or file may be called on the Hub."""

TEXT_SUFFIXES = (".md", ".json", ".yaml", ".html", ".svg", ".jinja", ".txt")
"""Files that are searched for tokens."""

BLOCK = 1 << 20


@dataclass(frozen=True)
class PublishedFile:
    """One file.

    Attributes:
        name: Its path in the repository.
        content: Where it lies, or what it holds.
        size: Bytes.
        sha256: Digest of its bytes, by which large files are known on the Hub.
        blob: Name that git gives it, by which small files are known.
    """

    name: str
    content: Path | bytes
    size: int
    sha256: str
    blob: str

    def same_as(self, blob: str, sha256: str | None) -> bool:
        """Whether the Hub's file with these digests is this one; `sha256` is known of large files only."""
        return self.sha256 == sha256 if sha256 else self.blob == blob


@dataclass(frozen=True)
class Publication:
    """What is published, and where.

    Attributes:
        kind: `dataset`, `distiller`, `datastore` or `report`.
        repo_id: `OWNER/NAME`.
        repo_type: The Hub's word: `dataset`, `model` or `space`.
        files: Everything that leaves.
        replaces: Files of the repository with such names are deleted if they are not among `files`.
        licenses: What the card says.
        workspace: A temporary folder that must outlive the push.
    """

    kind: str
    repo_id: str
    repo_type: str
    files: tuple[PublishedFile, ...]
    replaces: str = r"(?!)"
    licenses: tuple[str, ...] = ()
    workspace: "tempfile.TemporaryDirectory[str] | None" = None

    @property
    def digest(self) -> str:
        """A name for the content: 12 hex digits over names and digests of all files."""
        listing = "".join(f"{file.sha256}  {file.name}\n" for file in sorted(self.files, key=lambda file: file.name))
        return hashlib.sha256(listing.encode()).hexdigest()[:12]


def published_file(name: str, content: Path | bytes | str) -> PublishedFile:
    """A file with its digests.

    Args:
        name: Its path in the repository.
        content: A path, bytes, or a text.

    Raises:
        ValueError: If the name is not one, the path leads through a symbolic link, or the content holds a token.
    """
    if not all(NAME_PART.fullmatch(part) and part not in (".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} cannot be a file of a repository. Allowed: A-Z a-z 0-9 . _ - in parts of 1 to 96.")
    if isinstance(content, str):
        content = content.encode()
    size = len(content) if isinstance(content, bytes) else content.lstat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    text = bytearray()
    for block in [content] if isinstance(content, bytes) else _blocks(content):
        sha256.update(block)
        blob.update(block)
        if name.endswith(TEXT_SUFFIXES):
            text += block
    if holds_secret(bytes(text)):
        raise ValueError(f"{name} holds a token or a secret of this environment. Remove it there, then push again.")
    return PublishedFile(name, content, size, sha256.hexdigest(), blob.hexdigest())


def gather(folder: Path, patterns: Sequence[str]) -> list[PublishedFile]:
    """The regular files below a folder whose whole relative path matches one of some patterns.

    Args:
        folder: Where to look; symbolic links in it are not followed.
        patterns: Regular expressions over paths such as `data/train-00000-of-00001.parquet`.

    Returns:
        The files by name.
    """
    root = folder.resolve()
    wanted = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    found = []
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not (Path(place) / name).is_symlink())
        for name in names:
            path = Path(place) / name
            relative = PurePosixPath(path.relative_to(root)).as_posix()
            if wanted.fullmatch(relative) and stat.S_ISREG(path.lstat().st_mode):
                found.append(published_file(relative, path))
    return sorted(found, key=lambda file: file.name)


def _blocks(path: Path) -> Iterator[bytes]:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "rb") as stream:
        while block := stream.read(BLOCK):
            yield block
