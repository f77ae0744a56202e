"""A crash-safe record of answers that were expensive to get.

A journal is one append-only file. Its first line holds the settings of the run, each other line one answer under its
key. Every line starts with the CRC-32 of the rest, so a torn or damaged line is known for what it is::

    9d1f6f52 {"journal":1,"settings":{"input":"6f1c...","model":"rater-8b","temperature":0.0}}
    5c0a8a01 ["5f1d0c8f1f0b7a52",{"overall":7}]

What it promises:

- `add` hands the line to the kernel before it returns: `kill -9` afterwards loses nothing that was added.
- The disk is synced at most every `SYNC_SECONDS` while answers come in (group commit), at `flush` and at `close`: a
  power cut costs no more than the answers since then.
- A line that a crash cut short is cut off at the next opening; a damaged line in the middle is left out. Their keys
  are simply absent and can be asked again.
- A key is recorded once. A second `add` of it is an error.
- One process at a time: the file is locked while open, and the lock dies with the process.
- A run with other settings or another input is refused, and the message names what differs. As long as there is no
  answer, any settings will do.

Use::

    with Journal(folder / "ratings.journal", {"input": digest(ids), "model": "rater-8b"}) as journal:
        for key in ids:
            if key not in journal:
                journal.add(key, ask(key))      # any JSON value
        answers = [journal[key] for key in ids]

An answer takes 16 bytes of memory (`key_places`). A journal belongs to one thread. The settings must not hold secrets:
they are written as they are.
"""

import fcntl
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from hf_lmmixup.key_places import KeyPlaces
from hf_lmmixup.records import quoted


logger = logging.getLogger(__name__)

SYNC_SECONDS = 1.0
"""Group commit: one sync serves all answers of this time. It takes some milliseconds, in which nothing else is done;
one for each answer would cap a run at a few hundred answers a second."""

FORMAT_VERSION = 1
HEADER_START = f'{{"journal":{FORMAT_VERSION},"settings":{{'.encode()
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
CHECKSUM_BYTES = 9
"""Eight hex digits and a space before each line's JSON."""


class Journal:
    """Answers by key, in a file that survives crashes; see the module for what it promises.

    Args:
        path: The file; it and its folder are made if needed.
        settings: Everything the answers depend on, JSON values by name. An existing file must have the same.

    Raises:
        ValueError: If another process has the journal open, if the file is something else, or if its settings differ.
        OSError: If the file cannot be opened or written.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._places = KeyPlaces()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self._reader = open(self.path, "rb")
        with ExitStack() as failed:
            failed.callback(self._release)
            _lock(self._descriptor, self.path)
            self._end = self._recover(settings)
            self._synced, self._synced_at = self._end, time.monotonic()
            failed.pop_all()  # it did not

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return self._entry(key) is not None

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """The keys, in the order in which they were added."""
        return (self._entry_at(place)[0] for place in self._places)

    def __getitem__(self, key: str) -> Any:
        entry = self._entry(key)
        if entry is None:
            raise KeyError(key)
        return entry[1]

    def add(self, key: str, value: Any) -> None:
        """Record an answer.

        Args:
            key: Its key.
            value: Any JSON value; NaN and infinity are not.

        Raises:
            ValueError: If the key is recorded already, the value is no JSON value, or the journal is closed.
            OSError: If the disk is full or fails; the file then ends with the last whole line.
        """
        if key in self:
            raise ValueError(f"Key {key!r} is recorded in {self.path} already. An answer is recorded once.")
        place = self._append(b"[%b,%b]" % (_json(key), _json(value)))
        self._places.add(key, place)
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sync to the disk what was added since the last sync."""
        if self._synced < self._end:
            os.fsync(self._descriptor)
            self._synced, self._synced_at = self._end, time.monotonic()

    def close(self) -> None:
        """Sync, unlock and close; closing twice does nothing."""
        if self._descriptor >= 0:
            try:
                self.flush()
            finally:
                self._release()

    def _entry(self, key: str) -> list[Any] | None:
        for place in self._places.candidates(key):
            entry = self._entry_at(place)
            if entry[0] == key:
                return entry
        return None

    def _entry_at(self, place: int) -> list[Any]:
        self._reader.seek(place)
        return json.loads(self._reader.readline()[CHECKSUM_BYTES:])

    def _append(self, content: bytes) -> int:
        """Write one line of JSON at the end and return its place."""
        if self._descriptor < 0:
            raise ValueError(f"{self.path} is closed.")
        line, place = b"%08x %b\n" % (zlib.crc32(content), content), self._end
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):  # a short write is how a full disk announces itself
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            error.filename = str(self.path)
            self._cut(place)
            os.lseek(self._descriptor, place, os.SEEK_SET)
            raise
        self._end += len(line)
        return place

    def _recover(self, settings: Mapping[str, Any]) -> int:
        """Read the file, cut its torn tail, and return where it ends. An empty one gets its first line."""
        expected = _normal(settings)
        size = os.fstat(self._descriptor).st_size
        header = self._reader.readline()
        content = _content(header)
        is_journal = isinstance(content, dict) and content.get("journal") == FORMAT_VERSION
        is_new = is_journal and size == len(header)
        if is_new or (not header.endswith(b"\n") and _is_torn_header(header)):
            self._cut(0)
            self._end = 0
            self._append(_json({"journal": FORMAT_VERSION, "settings": expected}))
            os.fsync(self._descriptor)
            sync(self.path.parent)  # the new file's name survives a power cut
            return self._end
        if not is_journal:
            raise ValueError(f"{self.path} is not a journal, or its first line is damaged. Name another directory.")
        _refuse_differences(self.path, content["settings"], expected)
        end, damaged = self._index(len(header))
        if damaged:
            logger.warning("%s: %d damaged lines are left out; their keys will be asked again.", self.path, damaged)
        if end < size:
            logger.warning("%s: a torn tail of %d bytes is cut off.", self.path, size - end)
            self._cut(end)
            os.fsync(self._descriptor)
        os.lseek(self._descriptor, end, os.SEEK_SET)
        return end

    def _cut(self, end: int) -> None:
        """Cut the file off here; a reader keeps what it has read ahead, so another one takes its place."""
        os.ftruncate(self._descriptor, end)
        self._reader.close()
        self._reader = open(self.path, "rb")

    def _index(self, start: int) -> tuple[int, int]:
        """Note the place of each key; returns the end of the last good line and how many bad ones lie before it."""
        place = end = start
        bad = damaged = 0
        with open(self.path, "rb") as lines:
            lines.seek(start)
            for line in lines:
                content = _content(line)
                if isinstance(content, list) and len(content) == 2 and isinstance(content[0], str):
                    if content[0] not in self:
                        self._places.add(content[0], place)
                    end, damaged = place + len(line), bad
                else:
                    bad += 1
                place += len(line)
        return end, damaged

    def _release(self) -> None:
        self._reader.close()
        os.close(self._descriptor)
        self._descriptor = -1


def digest(texts: Iterable[str]) -> str:
    """The SHA-256 of a sequence of texts, order included: the usual `input` among a journal's settings."""
    whole = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        whole.update(b"%d:" % len(encoded) + encoded)
    return whole.hexdigest()


def _json(value: Any) -> bytes:
    return quoted(value) if isinstance(value, str) else _encode(value).encode("ascii")


def _content(line: bytes) -> Any:
    """The JSON of a line, `None` if the line is torn or damaged."""
    checksum, payload = line[:CHECKSUM_BYTES], line[CHECKSUM_BYTES:-1]
    if not line.endswith(b"\n") or checksum != b"%08x " % zlib.crc32(payload):
        return None
    return json.loads(payload)


def _normal(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(settings), sort_keys=True, allow_nan=False))


def _is_torn_header(start: bytes) -> bool:
    """Whether these bytes, which end the file, begin a first line, or are the zeros that a power cut leaves."""
    checksum, payload = start[:CHECKSUM_BYTES], start[CHECKSUM_BYTES:]
    begun = not checksum.strip(b"0123456789abcdef ") and HEADER_START.startswith(payload[: len(HEADER_START)])
    return begun or not start.strip(b"\0")


def _refuse_differences(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    missing = object()
    differing = [name for name in sorted({*old, *new}) if old.get(name, missing) != new.get(name, missing)]
    if differing:
        changes = "; ".join(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in differing)
        raise ValueError(
            f"{path} was begun with other settings: {changes}. Restore them to go on; "
            "to ask everything anew, name another directory or output."
        )


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"{path} is in use by another run. Wait until it ends, stop it, or name another directory."
        ) from error


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
