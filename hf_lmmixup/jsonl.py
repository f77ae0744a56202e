"""A strict, bounded reader for JSON from strangers: one row per line, or one array of rows.

`load_dataset("json")` ends with a segmentation fault on a line nested 10,000 levels deep, so no local file reaches it.
Here every line is capped in bytes and in depth and must be UTF-8; what fails is a `Reject` with its place and reason,
and the next line is read as if nothing had happened. Memory stays below a few times the cap.

One line of a file `pile.jsonl` becomes `("pile.jsonl:1", {"prompt": "why sky blue", "completion": "scattering"})`.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


SUFFIXES = (".jsonl", ".json", ".ndjson")

PACKED = ".gz"
"""What follows one of these where the file is compressed."""

MAX_LINE_BYTES = 8 * 2**20
"""Longest line, or array element, in bytes. The longest rows of public instruction data stay under 1 MB."""

MAX_DEPTH = 64
"""Deepest nesting of lists and objects; conversation data needs four levels."""

SIGNS, TEXT = re.compile(rb'["\[\]{},]'), re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
"""What has a meaning outside of a string of JSON, and what a string holds. Neither ever goes back."""

NOT_JSON, NOT_OBJECT = "not valid JSON", "not a JSON object"


@dataclass(frozen=True)
class Reject:
    """A row that could not be read.

    Attributes:
        reason: Why, in a few words that do not depend on the row, so that rejects can be counted by reason.
    """

    reason: str


def read_json(path: str | Path) -> Iterator[tuple[str, dict[str, Any] | Reject]]:
    """Read a `.jsonl` file, or a `.json` file that holds lines or one array, row by row.

    Args:
        path: The file; one whose name ends in `.gz` is unpacked while it is read.

    Yields:
        The row's place, `name:number` counted from 1, and the row or the reject that stands for it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be unpacked.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file at {path}.")
    with _unpacked(path) as stream:
        if stream.read(3) != b"\xef\xbb\xbf":  # a byte order mark is skipped
            stream.seek(0)
        start = stream.tell()
        head = stream.read(4096).lstrip()
        stream.seek(start)
        is_array = path.name.removesuffix(PACKED).endswith(".json") and head.startswith(b"[")
        chunks = _elements(stream) if is_array else _lines(stream)
        for number, chunk in enumerate(chunks, start=1):
            if chunk is not None:
                yield f"{path.name}:{number}", chunk if isinstance(chunk, Reject) else parse_row(chunk)


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path, "rb") if path.suffix == PACKED else path.open("rb") as stream:
            yield stream  # type: ignore[misc]  # both read bytes
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}. Copy or pack it again.") from error


def parse_row(raw: bytes) -> dict[str, Any] | Reject:
    """Parse one JSON object strictly: UTF-8, no doubled keys, no NaN, bounded depth.

    Args:
        raw: The bytes of the object.

    Returns:
        The row, or the reject that stands for it.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return Reject("invalid UTF-8")
    if _depth(raw) > MAX_DEPTH:
        return Reject(f"nested deeper than {MAX_DEPTH} levels")
    try:
        row = strict_json(text)
    except (ValueError, RecursionError):
        return Reject(NOT_JSON)
    return row if isinstance(row, dict) else Reject(NOT_OBJECT)


def strict_json(text: str | bytes) -> Any:
    """Parse JSON without doubled keys and NaN.

    Raises:
        ValueError: If it is no such JSON.
        RecursionError: If it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _lines(stream: BinaryIO) -> Iterator[bytes | Reject | None]:
    """The lines of a file; `None` for a blank one, so that numbers stay those of an editor."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield Reject(f"line longer than {MAX_LINE_BYTES} bytes")
        else:
            yield line if line.strip() else None


def _elements(stream: BinaryIO) -> Iterator[bytes | Reject]:
    """The elements of a top-level array, cut at the commas of depth one without building any value."""
    scanner = _ArrayScanner()
    while block := stream.read(2**16):
        yield from scanner.feed(block)
    yield from scanner.close()


class _ArrayScanner:
    """Cuts an array into its elements by its signs alone; holds at most one element of `MAX_LINE_BYTES`."""

    def __init__(self) -> None:
        self.depth, self.in_string, self.escaped, self.too_long = 0, False, False, False
        self.closed = False
        self.element = bytearray()

    def feed(self, block: bytes) -> Iterator[bytes | Reject]:
        start, position = 0, self._after_string(block, int(self.escaped))
        while sign := SIGNS.search(block, position):
            place, byte = sign.start(), sign[0]
            position = place + 1
            if byte == b'"':
                self.in_string = True
                position = self._after_string(block, position)
            elif byte in b"[{":
                self.depth += 1
                start = position if self.depth == 1 else start
            elif byte in b"]}":
                self.depth -= 1
            if (byte == b"," and self.depth == 1) or (byte == b"]" and self.depth == 0):
                self._keep(block[start:place])
                yield from self._flush()
                start = position
                self.closed = self.depth == 0
        self._keep(block[start:])

    def _after_string(self, block: bytes, position: int) -> int:
        """Where the string ends that this place of the block lies in, if it lies in one; perhaps in a later block."""
        if not self.in_string:
            return position
        end = TEXT.match(block, position).end()  # type: ignore[union-attr]  # it matches nothing, too
        self.in_string = block[end : end + 1] != b'"'
        self.escaped = block[end : end + 1] == b"\\"
        return len(block) if self.in_string else end + 1

    def close(self) -> Iterator[bytes | Reject]:
        if not self.closed:
            yield Reject("array not closed")
        elif self.element.strip():
            yield Reject("text after the array")

    def _keep(self, piece: bytes) -> None:
        if len(self.element) + len(piece) > MAX_LINE_BYTES:
            self.too_long = True
            self.element.clear()
        if not self.too_long:
            self.element += piece

    def _flush(self) -> Iterator[bytes | Reject]:
        element, too_long = bytes(self.element).strip(), self.too_long
        self.element.clear()
        self.too_long = False
        if too_long:
            yield Reject(f"line longer than {MAX_LINE_BYTES} bytes")
        elif element:
            yield element


def _depth(raw: bytes) -> int:
    """Upper bound of the nesting depth: brackets inside strings count too, which only rejects odd rows sooner."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    in_string = escaped = False
    for byte in raw:
        if in_string:
            in_string, escaped = (byte != 0x22 or escaped), (byte == 0x5C and not escaped)
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key occurs twice")
    return row


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
