"""Embeddings in half precision, as they are stored: looked over and widened, faster than NumPy does.

A half-precision number has a sign, five bits of exponent and ten of mantissa; a single-precision one has eight and 23.
Shifted by 13 bits, the former's fields stand at the end of the latter's. What is wrong then is the exponent alone: it
counts from 2**-15 in the one and from 2**-127 in the other::

    1.5 = 0 01111 1000000000  ->  0 00001111 10000000000000000000000 = 1.5 * 2**-112
"""

import numpy as np


BLOCK = 65_536
"""Rows looked over at a time."""

EXPONENT = 0x7C00
"""The exponent of a half-precision number; all of its bits are set in infinities and NaN alone."""

FIELDS = np.int32(-0x7000_0001)
"""All bits but 28 to 30: the shift of a signed number leaves its sign in them too."""

REBASE = np.float32(2.0**112)


def widened(vectors: np.ndarray) -> np.ndarray:
    """Vectors in single precision, bit by bit as `astype` gives them, in a third of the time.

    Args:
        vectors: Finite numbers of any shape; other types than half precision are cast as usual, or left as they are.
    """
    given = np.asarray(vectors)
    if given.dtype != np.float16:
        return given.astype(np.float32, copy=False)
    bits = given.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= FIELDS
    numbers = bits.view(np.float32)
    numbers *= REBASE
    return numbers


def check_finite(embeddings: np.ndarray) -> None:
    """Refuse infinities and NaN: a row of them has no neighbors, and would pass for the rarest one.

    Raises:
        ValueError: If there is one.
    """
    for start in range(0, len(embeddings), BLOCK):
        some = np.ascontiguousarray(embeddings[start : start + BLOCK])
        if some.dtype == np.float16:  # an eighth of the time
            finite = (some.view(np.uint16) & EXPONENT).max(initial=0) < EXPONENT
        else:
            finite = np.isfinite(some).all()
        if not finite:
            raise ValueError("The embeddings hold values that are not finite. Encode the texts again.")
