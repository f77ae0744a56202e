"""What a causal language model remembers of the rows that it is writing, and how rows join and leave.

Rows are padded on the left, so that the newest token of each stands in the last column. Two rows, the second shorter::

    mask  [[1, 1, 1, 1],
           [0, 0, 1, 1]]
"""

from collections.abc import Sequence
from typing import Any


class BatchState:
    """Keys and values of the rows that are being written, left-padded to one length.

    Args:
        cache: A `DynamicCache`; its layers hold keys and values (rows, heads, length, head size).
        mask: 1 where a row has a token, 0 where it has padding (rows, length).
    """

    def __init__(self, cache: Any, mask: Any) -> None:
        self.cache, self.mask = cache, mask

    @classmethod
    def read(cls, model: Any, texts: Sequence[Sequence[int]]) -> "tuple[Any, BatchState]":
        """Read whole texts: the logits after each, float32 (rows, vocabulary), and the state they leave."""
        import torch
        from transformers import DynamicCache

        longest = max(map(len, texts))
        padded = [[0] * (longest - len(text)) + list(text) for text in texts]
        tokens = torch.tensor(padded, device=model.device)
        ages = torch.arange(longest, device=model.device)
        starts = torch.tensor([[longest - len(text)] for text in texts], device=model.device)
        state = cls(DynamicCache(), (ages >= starts).long())
        return state._forward(model, tokens, (ages - starts).clamp(min=0)), state

    def step(self, model: Any, tokens: Sequence[int]) -> Any:
        """Read one more token of each row: the logits after it, float32 (rows, vocabulary)."""
        import torch

        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        positions = self.mask.sum(dim=1, keepdim=True) - 1
        return self._forward(model, torch.tensor(tokens, device=model.device)[:, None], positions)

    def _forward(self, model: Any, tokens: Any, positions: Any) -> Any:
        written = model(
            input_ids=tokens,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return written.logits[:, -1].float()

    def joined(self, other: "BatchState") -> "BatchState":
        """The rows of both, padded on the left to the longer one."""
        import torch

        length = max(self.mask.shape[1], other.mask.shape[1])
        for layer, added in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.keys = torch.cat([_lengthened(layer.keys, length), _lengthened(added.keys, length)])
            layer.values = torch.cat([_lengthened(layer.values, length), _lengthened(added.values, length)])
        masks = [torch.nn.functional.pad(mask, (length - mask.shape[1], 0)) for mask in (self.mask, other.mask)]
        self.mask = torch.cat(masks)
        return self

    def kept(self, rows: Sequence[int]) -> "BatchState":
        """Only some rows, without the padding that all of these share."""
        import torch

        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        start = int(self.mask.shape[1] - self.mask.sum(dim=1).max())
        self.mask = self.mask[:, start:]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[index, :, start:], layer.values[index, :, start:]
        return self


def _lengthened(states: Any, length: int) -> Any:
    import torch

    return torch.nn.functional.pad(states, (0, 0, length - states.shape[2], 0))
