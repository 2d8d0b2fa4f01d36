"""Philox-4x32-10, the random words of masks and noise, in PyTorch's integers (Salmon et al., SC 2011).

Key = the 64-bit seed; counter = (index, sample id, draw, head), each modulo 2^32. The words are the same bits in every
backend.
"""

from torch import Tensor

RESERVED = 0xFFFFFFFF  # index (and sample id) of the word that draws a ratio; head of `sample_uniform`
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """The four words of each counter: int64 tensors that hold 32-bit words, broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product may wrap around in int64, but its 64 bits are right, and the shift's sign bits are cut off.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def counter_words(index: Tensor, sample: Tensor, draw: Tensor, head: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
    """The four words of counters whose parts are reduced modulo 2^32 here."""
    return philox((index & _LOW, sample & _LOW, draw & _LOW, head & _LOW), (seed & _LOW, (seed >> 32) & _LOW))
