"""The order in which training uses examples, and the random numbers for each example.

Augmentation depends only on (seed, epoch, index), and the order only on (seed, position).
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterator

import numpy as np
from grain.experimental import index_shuffle

from dinotxt_jax.data.shares import Share, shared

_SHUFFLE_ROUNDS = 4  # Grain's default
_LARGEST_GRAIN_SHUFFLE = 2**32 - 1  # limit of Grain's 32-bit index shuffle
MAX_EXAMPLES = 2**62  # indices must fit into int64


def _hashed(purpose: str, *values: int) -> int:
    """Hashes the arguments to 128 bits; stable across processes and Python versions."""
    data = b"".join(value.to_bytes(8, "little") for value in values)
    digest = hashlib.blake2b(data, digest_size=16, person=purpose.encode())
    return int.from_bytes(digest.digest(), "little")


def _shuffled(index: int, size: int, seed: int) -> int:
    """Returns element `index` of a random permutation of `range(size)`."""
    if size <= _LARGEST_GRAIN_SHUFFLE:
        return index_shuffle(index, max_index=size - 1, seed=seed, rounds=_SHUFFLE_ROUNDS)
    return _shuffled_by_feistel(index, size, seed)


def _shuffled_by_feistel(index: int, size: int, seed: int) -> int:
    """Returns element `index` of a random permutation of `range(size)`, for any size.

    A Feistel network permutes all numbers with 2 x `half` bits, fewer than 4 x `size` numbers.
    Numbers outside the range are permuted again until they fall inside, which yields a permutation
    of the range (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half = ((size - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(_SHUFFLE_ROUNDS):
            left, right = right, left ^ (_hashed("feistel", seed, number, right) & mask)
        index = left << half | right
        if index < size:
            return index


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """A single use of an example in training.

    Attributes:
        epoch: number of complete passes over the source before this draw.
        index: the example's index, counted through all sources.
        position: position in training, `step * batch_size + row`.
        seed: the run's seed.
    """

    epoch: int
    index: int
    position: int
    seed: int

    def rng(self) -> np.random.Generator:
        """Creates the generator for the augmentation, determined by (seed, epoch, index)."""
        key = _hashed("augmentation", self.seed, self.epoch, self.index)
        return np.random.Generator(np.random.Philox(key=key))

    def substitutes(self, first: int, size: int) -> Iterator[int]:
        """Yields each other index in `range(first, first + size)` once, in random order.

        The examples at these indices replace a bad image, in this order. The order depends on
        (seed, epoch, index). Substitutes are spread over the whole source: if neighbours were used,
        a missing folder would make the example next to it much more frequent than all others.
        """
        seed = _hashed("substitutes", self.seed, self.epoch, self.index) % 2**32
        for number in range(size):
            index = first + _shuffled(number, size, seed)
            if index != self.index:
                yield index

    def fraction(self, purpose: str) -> float:
        """Returns a number, uniform in [0, 1), determined by (seed, epoch, index) and `purpose`."""
        # Only 53 bits: with more bits, numbers close to 1 would be rounded to 1.
        return (_hashed(purpose, self.seed, self.epoch, self.index) >> 75) / 2**53

    def caption_index(self, count: int) -> int:
        """Returns the number of the caption to use; `count` epochs use each caption once.

        (seed, index) determine a permutation of the captions; epoch e uses entry e mod `count`.
        """
        if count == 1:
            return 0
        key = _hashed("captions", self.seed, self.index)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(count)
        return int(order[self.epoch % count])


@dataclasses.dataclass(frozen=True)
class Turns:
    """The endless sequence of draws for a process, starting at `first_step`.

    The global batch in step s has the positions [s*B, (s+1)*B) and is split into N equal parts. A
    process reads the numbers in `parts`; part p has positions [s*B + p*B/N, s*B + (p+1)*B/N). Each
    source has separate epochs, which follow each other without a gap, even within a batch.
    """

    shares: tuple[Share, ...]
    batch_size: int
    seed: int
    shuffle: bool
    parts: tuple[int, ...]
    part_count: int
    first_step: int

    @property
    def rows(self) -> int:
        """Rows per step in this process."""
        return self.batch_size // self.part_count * len(self.parts)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> Draw:
        size = self.batch_size // self.part_count
        step, row = divmod(number, self.rows)
        part, row = divmod(row, size)
        step += self.first_step
        return self.draw(step * self.batch_size + self.parts[part] * size + row)

    @property
    def dataset_size(self) -> int:
        """Number of examples in all sources."""
        return sum(share.size for share in self.shares)

    def draw(self, position: int) -> Draw:
        """Returns the draw at a position in training."""
        number, used = shared(position, self.shares)
        share = self.shares[number]
        epoch, index = divmod(used, share.size)
        if self.shuffle:
            # Sources with equal sizes get different orders, since their examples may correspond.
            seed = _hashed("order", self.seed, epoch, *([number] if number else [])) % 2**32
            index = _shuffled(index, share.size, seed)
        return Draw(epoch, share.first + index, position, self.seed)


@dataclasses.dataclass(frozen=True)
class Dealt:
    """The draws in `turns`, reordered so that each of W workers gets complete chunks with C rows.

    Elements come in parts with `together` consecutive rows. Grain gives worker w the parts w, w+W,
    w+2W, ..., which the worker joins to chunks with C rows. Taking chunks from the workers in turn
    then restores the row order in `turns`:

        part  0 1 2 3 4 5 6 7  (W = 2)                worker 0: rows 0 1 | 4 5
        row   0 2 1 3 4 6 5 7  (C = 2, together = 1)  worker 1: rows 2 3 | 6 7
    """

    turns: Turns
    workers: int
    chunk: int
    together: int = 1

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> Draw:
        part, row = divmod(number, self.together)
        count, worker = divmod(part, self.workers)
        round_, piece = divmod(count, self.chunk // self.together)
        start = (round_ * self.workers + worker) * self.chunk
        return self.turns[start + piece * self.together + row]
