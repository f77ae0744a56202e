"""Noise of samples and barred repetitions, against plain loops."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lmmixup.token_choice import gumbel_noise, without_repeats


def barred_plainly(text, size, vocabulary):
    """Tokens after which the text's last `size` tokens are found twice."""
    runs = [tuple(text[start : start + size]) for start in range(len(text) - size + 1)]
    return {token for token in range(vocabulary) if (*text[len(text) - size + 1 :], token) in runs} if runs else set()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=14), min_size=1, max_size=4), st.integers(1, 4))
def test_only_what_would_be_written_twice_is_barred(written, size):
    scores = torch.arange(4.0).repeat(len(written), 1)
    before = scores.clone()
    found = without_repeats(scores, written, size)
    assert torch.equal(scores, before)
    for text, row in zip(written, found, strict=True):
        barred = {token for token in range(4) if row[token] == float("-inf")}
        assert barred == barred_plainly(text, size, 4)
        assert all(row[token] == token for token in range(4) if token not in barred)


def test_size_zero_bars_nothing():
    scores = torch.zeros(1, 4)
    assert without_repeats(scores, [[1, 1, 1, 1]], 0) is scores


def test_noise_follows_from_seed_and_position_and_samples_the_softmax():
    noise = gumbel_noise([7, 7, 8], [0, 1, 0], 5)
    assert noise.shape == (3, 5) and noise.dtype == np.float32
    assert np.array_equal(gumbel_noise([8], [0], 5)[0], noise[2])
    assert len({row.tobytes() for row in noise}) == 3
    logits = np.log(np.array([0.5, 0.3, 0.2]))
    drawn = (logits + gumbel_noise([1] * 4000, range(4000), 3)).argmax(1)
    assert np.allclose(np.bincount(drawn) / 4000, [0.5, 0.3, 0.2], atol=0.03)
