"""Counter-based random numbers: each number depends on its purpose, not on the numbers before it.

The generator is Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The key is the
seed; the counter is (sample index, epoch, 32 * view + stream, block). So the same seed gives the same pixels for any
number of workers, batch size and order, and after a resumption. A view is one of several images made of a sample, a
stream is one purpose (sampling.py lists them), and a block is four numbers of a stream.
"""

from __future__ import annotations

import math

from .jit import jit

STREAMS = 32  # of one view

_MASK = 0xFFFFFFFF
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9  # golden ratio
_WEYL_1 = 0xBB67AE85  # sqrt(3) - 1


@jit
def _multiply(a, b):
    """Return the (high, low) 32 bits of the product of two 32-bit numbers. All steps fit int64: numba equals Python."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


@jit
def philox4x32(counter_0, counter_1, counter_2, counter_3, key_0, key_1):
    """Return four 32-bit numbers (as int64) from a 128-bit counter and a 64-bit key, each given as 32-bit words."""
    for _ in range(10):
        high_0, low_0 = _multiply(_MULTIPLIER_0, counter_0)
        high_1, low_1 = _multiply(_MULTIPLIER_1, counter_2)
        counter_0 = high_1 ^ counter_1 ^ key_0
        counter_1 = low_1
        counter_2 = high_0 ^ counter_3 ^ key_1
        counter_3 = low_0
        key_0 = (key_0 + _WEYL_0) & _MASK
        key_1 = (key_1 + _WEYL_1) & _MASK
    return counter_0, counter_1, counter_2, counter_3


@jit
def uniforms(key, stream, block):
    """Return four independent uniform numbers in the open interval (0, 1), 32 bits each.

    `key` is (seed low, seed high, sample index, epoch, first stream): see `make_key`.
    """
    seed_low, seed_high, index, epoch, first = key
    a, b, c, d = philox4x32(index, epoch, first + stream, block, seed_low, seed_high)
    scale = 2.0**-32
    return (a + 0.5) * scale, (b + 0.5) * scale, (c + 0.5) * scale, (d + 0.5) * scale


@jit
def make_key(seed_low, seed_high, index, epoch, view):
    """Return the key of one view of a sample in one epoch, each word truncated to 32 bits."""
    return seed_low & _MASK, seed_high & _MASK, index & _MASK, epoch & _MASK, STREAMS * view & _MASK


@jit
def beta(key, stream, a):
    """Sample from Beta(a, a), in [0, 1].

    For a < 1/2 this is Jöhnk's method in logarithms, so that U**(1/a) does not underflow for small `a`; it accepts more
    than 78 % of the tries. For a >= 1/2 it is Ulrich's closed form for the symmetric case (Devroye, "Non-uniform random
    variate generation", IX.3).
    """
    if a >= 0.5:
        u, v, _, _ = uniforms(key, stream, 0)
        radius = 0.0
        if a > 0.5:
            radius = u ** (2.0 / (2.0 * a - 1.0))
        return 0.5 + 0.5 * math.sqrt(1.0 - radius) * math.cos(2.0 * math.pi * v)
    block = 0
    while True:
        u, v, s, t = uniforms(key, stream, block)
        log_x = math.log(u) / a
        log_y = math.log(v) / a
        if math.exp(log_x) + math.exp(log_y) <= 1.0:
            break
        log_x = math.log(s) / a
        log_y = math.log(t) / a
        if math.exp(log_x) + math.exp(log_y) <= 1.0:
            break
        block += 1
    difference = log_y - log_x
    if difference > 700.0:  # exp would overflow
        return 0.0
    return 1.0 / (1.0 + math.exp(difference))
