"""Random numbers inside kernels: one xorshift64* generator, its state a uint64 array of one element.

`np.random` inside a kernel would be one hidden state a thread, in no checkpoint.
Source: S. Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled" (2016).
"""

import math

import numpy as np

from adaptd.kernels.compile import subkernel


def generator(seed: int, stream: int = 0) -> np.ndarray:
    """A uint64 array [1] that starts the generator; other `stream`, independent numbers."""
    mask = (1 << 64) - 1
    # One round of splitmix64: neighbouring seeds give unrelated states, and none gives zero.
    z = (seed * 0x9E3779B97F4A7C15 + (stream + 1) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return np.array([(z ^ (z >> 31)) or 1], dtype=np.uint64)


@subkernel
def next_uint64(state):
    """The next 64 random bits; `state` uint64 [1] moves on."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return x * np.uint64(0x2545F4914F6CDD1D)


@subkernel
def next_uniform(state):
    """Uniform in [0, 1), 53 bits."""
    return np.float64(next_uint64(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@subkernel
def next_below(state, n):
    """An integer from 0 to n - 1 (n up to 2**53, bias below 2**-53)."""
    return np.int64(next_uniform(state) * n)


@subkernel
def next_normal(state):
    """Standard normal, by Box and Muller; two uniforms a call."""
    u = 1.0 - next_uniform(state)
    return math.sqrt(-2.0 * math.log(u)) * math.cos(2.0 * math.pi * next_uniform(state))
