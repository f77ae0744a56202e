"""Which rows are mixed with which, at which positions and in what shares.

An epoch is a random order of *units*: a pair (one confident and one unconfident row, each half in its own random
order) or two rows that have no half. Every unit is two rows long, so a batch of even size holds whole pairs and equal
halves.
Example, with rows 0 and 3 confident, 1 and 4 unconfident and 2 in the middle: `[3, 1, 0, 4, 2]`.

Order and shares depend on seeds, row numbers and the optimizer step alone: never on the size of a micro-batch or the
number of processes. Source: SFTMix, arXiv 2410.05248 (pairs at random, lambda ~ Beta(alpha, alpha), positions up to
the shorter response).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from hf_lmmixup.sftmix.confidence import CONFIDENT, UNCONFIDENT, UNPAIRED


IGNORED = -100
"""Label of a token without loss, everywhere in `transformers`."""


class PairSampler(Sampler[int]):
    """Row numbers in an order in which rows 2i and 2i+1 are a pair.

    Args:
        halves: (n,) `CONFIDENT`, `UNCONFIDENT` or `UNPAIRED` per row.
        seed: Seed of the order.
        epoch: Returns the current epoch. Asked whenever an order begins, so a resumed run continues the same order
            (a sampler's `set_epoch` is not reached behind the loader that skips batches on resumption).
    """

    def __init__(self, halves: np.ndarray, seed: int, epoch: Callable[[], int]) -> None:
        self.halves = halves
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.halves)

    def __iter__(self) -> Iterator[int]:
        return iter(pair_order(self.halves, np.random.default_rng([self.seed, self.epoch()])).tolist())


def pair_order(halves: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One epoch: a permutation of 0..n-1 made of units of two rows.

    Args:
        halves: (n,) values of `split_by_confidence`.
        rng: Where the randomness comes from.

    Returns:
        (n,) int64. A single row left over comes last.
    """
    confident = rng.permutation(np.flatnonzero(halves == CONFIDENT))
    unconfident = rng.permutation(np.flatnonzero(halves == UNCONFIDENT))
    paired = min(len(confident), len(unconfident))
    alone = [np.flatnonzero(halves == UNPAIRED), confident[paired:], unconfident[paired:]]
    single = rng.permutation(np.concatenate(alone))
    left_over = single[len(single) // 2 * 2 :]
    units = np.concatenate(
        [np.stack([confident[:paired], unconfident[:paired]], axis=1), single[: len(single) // 2 * 2].reshape(-1, 2)]
    )
    return np.concatenate([rng.permutation(units).reshape(-1), left_over]).astype(np.int64)


def pairs_in_batch(halves: Sequence[int]) -> list[tuple[int, int]]:
    """Places in the batch of its pairs: the k-th confident row with the k-th unconfident one.

    Args:
        halves: (b,) half of each row of the batch.
    """
    confident = [place for place, half in enumerate(halves) if half == CONFIDENT]
    unconfident = [place for place, half in enumerate(halves) if half == UNCONFIDENT]
    return list(zip(confident, unconfident, strict=False))


def draw_mixture(alpha: float, seed: int, step: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The shares lambda ~ Beta(alpha, alpha), one per pair of rows, each from a generator of its own.

    Args:
        alpha: Both parameters of the Beta distribution.
        seed: Seed of the run.
        step: Optimizer step, so that a pair that meets again gets a new share.
        pairs: (p,) pairs of row numbers (confident, unconfident).

    Returns:
        (p,) float64 in [0, 1]: the share of the confident row.
    """
    generators = [np.random.default_rng([seed, step, *pair]) for pair in pairs]
    return np.array([rng.beta(alpha, alpha) for rng in generators], dtype=np.float64)


@dataclass(frozen=True)
class MixedPositions:
    """What is mixed in one micro-batch.

    Attributes:
        confident: (m,) positions in the flattened (b * t) hidden states of the confident partner.
        unconfident: (m,) the same for the unconfident partner.
        targets: (m, 2) the token each of the two would have to predict.
        shares: (m, 2) float32, [lambda, 1 - lambda].
    """

    confident: Tensor
    unconfident: Tensor
    targets: Tensor
    shares: Tensor


def mixed_positions(labels: Tensor, pairs: Sequence[tuple[int, int]], mixture: np.ndarray) -> MixedPositions:
    """Match the responses of each pair position by position, up to the shorter one.

    The k-th position of a response is the one whose hidden state predicts its k-th token with loss; prompts, padding
    and the turns of a user are passed over.

    Args:
        labels: (b, t) token ids, `IGNORED` where there is no loss.
        pairs: (p,) places in the batch (confident, unconfident).
        mixture: (p,) lambda of each pair.
    """
    length = labels.shape[1]
    predicted = labels[:, 1:]
    with_loss = predicted != IGNORED
    # A stable sort moves the predicting positions of every row to its front, in their order.
    positions = with_loss.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    places = torch.as_tensor(list(pairs), dtype=torch.long, device=labels.device).reshape(-1, 2)
    counts = with_loss.sum(1)[places].amin(1, keepdim=True)
    shared = torch.arange(length - 1, device=labels.device) < counts
    share = torch.as_tensor(mixture, dtype=torch.float32, device=labels.device)[:, None].expand(shared.shape)[shared]
    flat, targets = [], []
    for side in (0, 1):
        row, position = places[:, side, None], positions[places[:, side]]
        flat.append((row * length + position)[shared])
        targets.append(predicted[row, position][shared])
    return MixedPositions(flat[0], flat[1], torch.stack(targets, dim=1), torch.stack([share, 1 - share], dim=1))


def mix_hidden_states(hidden: Tensor, positions: MixedPositions) -> Tensor:
    """lambda*h_c + (1-lambda)*h_u, computed in float32 or wider.

    Args:
        hidden: (b, t, h) last hidden states.
        positions: m positions to mix.

    Returns:
        (m, h) in the type of `hidden`.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    share = positions.shares.to(hidden.device, torch.promote_types(hidden.dtype, torch.float32))
    confident, unconfident = positions.confident.to(hidden.device), positions.unconfident.to(hidden.device)
    mixed = flat[confident] * share[:, :1] + flat[unconfident] * share[:, 1:]
    return mixed.to(hidden.dtype)
