"""The order in which training uses examples, and each example's randomness.

Augmentation depends on (seed, epoch, index) only, and the order on (seed, epoch) only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Iterator

import numpy as np
from grain.experimental import index_shuffle

_SHUFFLE_ROUNDS = 4  # Grain's default
MAX_EXAMPLES = 2**32 - 1  # limit of Grain's 32-bit index shuffle


def _hashed(purpose: str, *values: int) -> int:
    """Hashes the arguments to 128 bits, equally in every process and version."""
    data = b"".join(value.to_bytes(8, "little") for value in values)
    digest = hashlib.blake2b(data, digest_size=16, person=purpose.encode())
    return int.from_bytes(digest.digest(), "little")


def _shuffled(index: int, size: int, seed: int) -> int:
    """Returns the element `index` of a random permutation of `range(size)`."""
    return index_shuffle(index, max_index=size - 1, seed=seed, rounds=_SHUFFLE_ROUNDS)


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """One use of an example in training.

    Attributes:
        epoch: complete passes over the data before this one.
        index: the example's index in the source.
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

    def substitutes(self, size: int) -> Iterator[int]:
        """Yields all other examples of `size` once, in an order set by (seed, epoch, index).

        They take the place of an example with a bad image. Unlike neighbours, they are spread over
        the data, so that a lost folder makes no other example more frequent than the rest.
        """
        seed = _hashed("substitutes", self.seed, self.epoch, self.index) % 2**32
        for number in range(size):
            index = _shuffled(number, size, seed)
            if index != self.index:
                yield index

    def caption_index(self, count: int) -> int:
        """Returns which of `count` captions to use; `count` epochs use each caption once.

        The captions are permuted by (seed, index), and epoch e uses number e mod `count`.
        """
        if count == 1:
            return 0
        key = _hashed("captions", self.seed, self.index)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(count)
        return int(order[self.epoch % count])


@dataclasses.dataclass(frozen=True)
class Turns:
    """The endless sequence of draws for one process, from `first_step` on.

    In step s the global batch has the rows s*B to (s+1)*B and is split into N equal parts. A
    process reads its `parts` in order; part p has the rows [s*B + p*B/N, s*B + (p+1)*B/N). Epochs
    follow each other without a gap, also within a batch.
    """

    dataset_size: int
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
        position = step * self.batch_size + self.parts[part] * size + row
        epoch, index = divmod(position, self.dataset_size)
        if self.shuffle:
            seed = _hashed("order", self.seed, epoch) % 2**32
            index = _shuffled(index, self.dataset_size, seed)
        return Draw(epoch, index, position, self.seed)
