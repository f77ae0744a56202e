"""The rows of a large JSON array, one by one, in memory that does not grow with the file.

Rows of instruction data are flat: text fields and a few scalars. What else a row holds, lists and objects, is passed
over without being built, so that neither a file of gigabytes nor one nested ten thousand levels deep is a danger. Text
from the parser is UTF-8 or an error. One element of `data.json`::

    [{"id": 7, "input": "Q: tides?", "tags": ["a", "b"]}, ...]  ->  (1, {"id": "7", "input": "Q: tides?"})
"""

from collections.abc import Iterator
from typing import Any

import fsspec
import ijson


MAX_FIELD_CHARACTERS = 1_000_000
"""Longest text of a field. A cluster of twenty long paragraphs has 40,000 characters."""

MAX_DEPTH = 64
"""Deepest nesting that is passed over."""

Row = dict[str, str | None]


class RowError(ValueError):
    """A file does not hold the rows it should; the message names the file, the row and the field."""


def read_flat_rows(path: str, name: str) -> Iterator[tuple[int, Row]]:
    """Read the rows of a JSON array of objects.

    Scalars become text, `null` becomes `None`; lists and objects inside a row are passed over.

    Args:
        path: A local path or any address that `fsspec` opens, such as `hf://datasets/...`.
        name: What to call the file in errors.

    Yields:
        Row number, counted from 1, and row.

    Raises:
        RowError: If the file is not JSON, not an array of objects, or a text is longer than `MAX_FIELD_CHARACTERS`.
    """
    assembler = _Assembler(name)
    with fsspec.open(path, "rb") as stream:
        try:
            for event, value in ijson.basic_parse(stream):
                if assembler.take(event, value):
                    yield assembler.number, assembler.row
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise RowError(
                f"{assembler.name}: after row {assembler.number}: not valid JSON ({error!s:.80})."
            ) from error


class _Assembler:
    """Puts rows together from the events of the parser."""

    def __init__(self, name: str) -> None:
        self.name, self.number, self.depth, self.key = name, 0, 0, ""
        self.row: Row = {}

    def take(self, event: str, value: Any) -> bool:
        """Take one event; true if it completed a row."""
        if event in ("start_map", "start_array"):
            self._open(event)
        elif event in ("end_map", "end_array"):
            self.depth -= 1
            return self.depth == 1
        elif self.depth < 2:
            raise RowError(f"{self.name}: row {self.number + 1}: expected an object, found {value!r:.40}.")
        elif self.depth == 2 and event == "map_key":
            self.key = value
        elif self.depth == 2:
            self._keep(value)
        return False

    def _open(self, event: str) -> None:
        self.depth += 1
        expected = {1: "start_array", 2: "start_map"}.get(self.depth, event)
        if event != expected:
            raise RowError(f"{self.name}: row {self.number + 1}: expected one array of objects.")
        if self.depth > MAX_DEPTH:
            raise RowError(
                f"{self.name}: row {self.number}: field {self.key!r} is nested over {MAX_DEPTH} levels deep."
            )
        if self.depth == 2:
            self.number += 1
            self.row = {}

    def _keep(self, value: Any) -> None:
        text = None if value is None else str(value)
        if text is not None and len(text) > MAX_FIELD_CHARACTERS:
            raise RowError(
                f"{self.name}: row {self.number}: field {self.key!r} has {len(text)} characters; "
                f"at most {MAX_FIELD_CHARACTERS} are read."
            )
        self.row[self.key] = text
