"""What decides on the next token besides the model: the noise that makes a sample, and the tokens that are barred.

Both follow from a row's own seed and text, so they are the same in any batch::

    gumbel_noise([7], [0], 2048)             # (1, 2048): the largest of `logits + noise` is a sample of their softmax
    without_repeats(scores, [[5, 6, 5]], 2)  # -inf at token 6 of the first row: "5 6" stands there already
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def gumbel_noise(seeds: Sequence[int], positions: Sequence[int], vocabulary: int) -> np.ndarray:
    """Noise (rows, vocabulary) float32 that depends on each row's seed and position alone.

    A row that is begun again therefore continues the same way.
    """
    sources = [np.random.default_rng([seed, position]) for seed, position in zip(seeds, positions, strict=True)]
    return np.array([source.gumbel(size=vocabulary) for source in sources], np.float32)


def without_repeats(scores: Any, written: Sequence[Sequence[int]], size: int) -> Any:
    """The scores (rows, vocabulary), -inf at each token after which `size` tokens would stand in a text twice.

    Args:
        scores: A tensor; it is not changed.
        written: The tokens of each text so far, without its prompt: what the prompt says may be said again.
        size: How many tokens in a row count as a repetition; 0 bars nothing.
    """
    if not size:
        return scores
    import torch
    from transformers import NoRepeatNGramLogitsProcessor

    bar = NoRepeatNGramLogitsProcessor(size)
    rows = [
        bar(torch.tensor([tokens], device=scores.device), row[None])
        for tokens, row in zip(written, scores, strict=True)
    ]
    return torch.cat(rows)
