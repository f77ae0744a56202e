"""What a causal language model remembers of the rows that it is writing, and how rows join and leave.

Keys and values lie in buffers with room for more: a step writes one column, a row that leaves is replaced by the last
one, and a row that joins is written into the free places. (The cache of `transformers` copies everything at every
step; here that was a third of the time.) Rows are padded on the left, so that the newest token of each stands in the
last column. Two rows, the second shorter; `begin`, `end` and `starts` count columns of the buffer::

    column   3 4 5 6
             a b c d      starts = [3, 5], begin = 3, end = 7
             . . x y
"""

from collections.abc import Sequence
from functools import cache
from typing import Any


ROOM = 256
"""Columns by which a full buffer grows."""


class BatchState:
    """The keys and values of some rows; made by `read`.

    Args:
        layers: Buffers of each layer of the model, of the class that `_layer_class` makes.
        starts: The column in which each row begins (rows,).
        end: The first free column.
    """

    def __init__(self, layers: list[Any], starts: Any, end: int) -> None:
        self.layers, self.starts, self.end = layers, starts, end

    @classmethod
    def read(cls, model: Any, texts: Sequence[Sequence[int]]) -> "tuple[Any, BatchState]":
        """Read whole texts: the logits after each, float32 (rows, vocabulary), and the state they leave."""
        import torch

        longest = max(map(len, texts))
        padded = [[0] * (longest - len(text)) + list(text) for text in texts]
        starts = torch.tensor([longest - len(text) for text in texts], device=model.device)
        state = cls([], starts, 0)
        return state._forward(model, torch.tensor(padded, device=model.device)), state

    def step(self, model: Any, tokens: Sequence[int]) -> Any:
        """Read one more token of each row: the logits after it, float32 (rows, vocabulary)."""
        import torch

        return self._forward(model, torch.tensor(tokens, device=model.device)[:, None])

    def _forward(self, model: Any, tokens: Any) -> Any:
        import torch
        from transformers import DynamicCache

        cached = DynamicCache()
        cached.layers, cached.layer_class_to_replicate = self.layers, _layer_class()
        begin = self.layers[0].room.begin if self.layers else 0
        end = self.end + tokens.shape[1]
        columns = torch.arange(begin, end, device=model.device)
        written = model(
            input_ids=tokens,
            attention_mask=(columns >= self.starts[:, None]).long(),
            position_ids=(columns[-tokens.shape[1] :] - self.starts[:, None]).clamp(min=0),
            past_key_values=cached,
            use_cache=True,
            logits_to_keep=1,
        )
        self.end = end
        return written.logits[:, -1].float()

    def joined(self, other: "BatchState") -> "BatchState":
        """This state with the rows of another one behind its own."""
        import torch

        width = other.end - other.layers[0].room.begin
        shift = max(0, width - self.end)
        for layer, added in zip(self.layers, other.layers, strict=True):
            layer.room.join(added.room, shift)
            layer.look()
        self.end += shift
        self.starts = torch.cat([self.starts + shift, other.starts + (self.end - other.end)])
        return self

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Forget all rows but some.

        Args:
            rows: Which ones stay, ascending; at least one.

        Returns:
            The order in which they lie now: the last ones have moved into the places of those that left.
        """
        free = sorted(set(range(len(rows))).difference(rows))
        moving = [row for row in rows if row >= len(rows)]
        order = list(range(len(rows)))
        for place, row in zip(free, moving, strict=True):
            order[place] = row
        self.starts = self.starts[order]
        begin = int(self.starts.min())
        for layer in self.layers:
            layer.room.keep(len(rows), free, moving, begin)
            layer.look()
        return order


class Room:
    """Keys and values of one layer, each (rows, heads, columns, head size), in buffers with free rows and columns."""

    def __init__(self) -> None:
        self.buffers: list[Any] = []
        self.rows = self.begin = self.end = 0

    def views(self) -> list[Any]:
        """The part of the buffers that is in use."""
        return [buffer[: self.rows, :, self.begin : self.end] for buffer in self.buffers]

    def write(self, keys: Any, values: Any) -> list[Any]:
        """Add columns to all rows."""
        self.rows, width = keys.shape[0], keys.shape[2]
        if not self.buffers:
            self.buffers = [keys[:, :, :0], values[:, :, :0]]
        if self.end + width > self.buffers[0].shape[2]:
            self._move(max(self.rows, self.buffers[0].shape[0]), self.end + width + ROOM, 0)
        for buffer, states in zip(self.buffers, (keys, values), strict=True):
            buffer[: self.rows, :, self.end : self.end + width] = states
        self.end += width
        return self.views()

    def join(self, other: "Room", shift: int) -> None:
        """Take another room's rows in behind one's own, ending in the same column."""
        rows, held = self.rows + other.rows, self.buffers[0].shape
        if shift or rows > held[0]:
            self._move(max(rows, held[0]), held[2] + shift, shift)
        begin = self.end - (other.end - other.begin)
        for buffer, states in zip(self.buffers, other.views(), strict=True):
            buffer[self.rows : rows, :, begin : self.end] = states
        self.rows, self.begin = rows, min(self.begin, begin)

    def keep(self, rows: int, free: Sequence[int], moving: Sequence[int], begin: int) -> None:
        """Let the rows `moving` take the places `free`, and forget what lies behind `rows` and before `begin`."""
        for view in self.views():
            for place, row in zip(free, moving, strict=True):
                view[place] = view[row]
        self.rows, self.begin = rows, begin

    def _move(self, rows: int, columns: int, shift: int) -> None:
        """Into larger buffers, everything `shift` columns further right. Padding must hold numbers, so zeros."""
        for i, held in enumerate(self.buffers):
            larger = held.new_zeros((rows, held.shape[1], columns, held.shape[3]))
            larger[: held.shape[0], :, shift : shift + held.shape[2]] = held
            self.buffers[i] = larger
        self.begin, self.end = self.begin + shift, self.end + shift


@cache
def _layer_class() -> type:
    """A cache layer over a `Room`. The class is made here because its parent lives in `transformers`."""
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.room = Room()
            self.keys, self.values = self.room.write(key_states, value_states)
            return self.keys, self.values

        def look(self) -> None:
            self.keys, self.values = self.room.views()

    return RoomyLayer
