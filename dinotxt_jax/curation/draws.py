"""Random numbers that depend on names only, so that no order, retry or worker changes them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, UInt64

# Constants and shifts of the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def hashes(seed: int, names: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    """Returns a 64-bit hash of (seed, name) for each name, equal in every process and version."""
    key = seed.to_bytes(8, "little")
    digests = b"".join(
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
        for name in names
    )
    return np.frombuffer(digests, "<u8")


def uniform(
    first: UInt64[np.ndarray, "*#n"], second: UInt64[np.ndarray, "*#n"]
) -> Float64[np.ndarray, "..."]:
    """Returns a number in [0, 1) for each pair of hashes, which are broadcast."""
    with np.errstate(over="ignore"):  # the multiplications are modulo 2^64
        bits: np.ndarray = first ^ ((second << np.uint64(32)) | (second >> np.uint64(32)))
        for multiplier, shift in zip(_MULTIPLIERS, _SHIFTS[:2], strict=True):
            bits = (bits ^ (bits >> shift)) * multiplier
    bits = bits ^ (bits >> _SHIFTS[2])
    return (bits >> np.uint64(11)) / 2.0**53
