"""Where the line of each key begins, for millions of keys: 16 bytes a key, where a dict takes ten times as much.

The newest keys stand in a dict; every `NEWEST` of them move into two arrays, sorted by the key's hash. Two keys may
have one hash, so what comes back are candidates, and the line itself tells::

    places = KeyPlaces()
    places.add("5f1d0c8f1f0b7a52", 120)
    places.candidates("5f1d0c8f1f0b7a52")     # [120]
    places.candidates("91c2aa04b7c0de11")     # []
"""

from collections.abc import Iterator

import numpy as np


NEWEST = 16_384
"""Keys in the dict. Moving them copies the arrays, some milliseconds for a million keys."""


class KeyPlaces:
    """An index from keys to places in a file."""

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}
        self._hashes = np.empty(0, np.int64)
        self._places = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._newest) + len(self._places)

    def __iter__(self) -> Iterator[int]:
        """The places, ascending."""
        yield from np.sort(np.append(self._places, np.fromiter(self._newest.values(), np.int64))).tolist()

    def add(self, key: str, place: int) -> None:
        """Note the place of a key that has none yet."""
        self._newest[key] = place
        if len(self._newest) >= NEWEST:
            hashes = np.append(self._hashes, np.fromiter(map(hash, self._newest), np.int64))
            places = np.append(self._places, np.fromiter(self._newest.values(), np.int64))
            order = np.argsort(hashes, kind="stable")
            self._hashes, self._places = hashes[order], places[order]
            self._newest.clear()

    def candidates(self, key: str) -> list[int]:
        """The places where the key's line may begin; nowhere else does it."""
        if (place := self._newest.get(key)) is not None:
            return [place]
        wanted = hash(key)
        first = self._hashes.searchsorted(wanted)
        if first == len(self._hashes) or self._hashes[first] != wanted:  # nearly always, when a key is added
            return []
        return self._places[first : self._hashes.searchsorted(wanted, "right")].tolist()
