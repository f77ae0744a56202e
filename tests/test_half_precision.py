import numpy as np
import pytest

from hf_lmmixup.half_precision import widened


EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE = EVERY[np.isfinite(EVERY)]


def bits(numbers):
    return np.ascontiguousarray(numbers, np.float32).view(np.uint32)


@pytest.mark.parametrize(
    "numbers",
    [
        FINITE,
        FINITE.reshape(-1, 64),
        # what a graph takes: rows at every other place, columns first, none
        FINITE.reshape(-1, 64)[::2],
        np.asfortranarray(FINITE.reshape(-1, 64)),
        FINITE.reshape(-1, 64)[:, 3:7],
        FINITE[:0].reshape(0, 64),
    ],
)
def test_every_number_is_what_numpy_makes_of_it(numbers):
    """Zeros of both signs and numbers below the smallest exponent too."""
    before = numbers.copy()
    found = widened(numbers)
    assert found.dtype == np.float32 and found.shape == numbers.shape
    assert (bits(found) == bits(numbers.astype(np.float32))).all()
    assert (bits(numbers) == bits(before)).all()


def test_a_mapped_file_stays_as_it_is(tmp_path):
    np.save(tmp_path / "vectors.npy", FINITE.reshape(-1, 64))
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert (bits(widened(mapped)) == bits(FINITE.astype(np.float32).reshape(-1, 64))).all()


def test_other_types():
    single = np.linspace(-1, 1, 7, dtype=np.float32)
    assert widened(single) is single
    assert widened(single.astype(np.float64)).dtype == np.float32
    assert widened([[1, 2]]).tolist() == [[1.0, 2.0]]
