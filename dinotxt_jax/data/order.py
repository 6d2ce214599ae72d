"""The order of training: which example has its turn when, and the chance that belongs to it.

Everything random about an example follows from (seed, epoch, index), and everything about the
order from (seed, epoch).
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys

import numpy as np
from grain.experimental import index_shuffle

_SHUFFLE_ROUNDS = 4  # Grain's own default
MAX_EXAMPLES = 2**32 - 1  # of Grain's 32-bit index shuffle


def _hashed(purpose: str, *values: int) -> int:
    """128 bits that any change of an argument changes; the same in every process and version."""
    data = b"".join(value.to_bytes(8, "little") for value in values)
    digest = hashlib.blake2b(data, digest_size=16, person=purpose.encode())
    return int.from_bytes(digest.digest(), "little")


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """One example's turn in training.

    Attributes:
        epoch: how often every example has had its turn before.
        index: of the example in the source.
        position: of the turn in training, `step * batch_size + row`.
        seed: the run's.
    """

    epoch: int
    index: int
    position: int
    seed: int

    def rng(self) -> np.random.Generator:
        """A fresh generator for the augmentation, determined by (seed, epoch, index)."""
        key = _hashed("augmentation", self.seed, self.epoch, self.index)
        return np.random.Generator(np.random.Philox(key=key))

    def caption_index(self, count: int) -> int:
        """Which of `count` captions to use: in `count` epochs each of them once.

        The captions are permuted by (seed, index), and epoch e takes number e mod `count`.
        """
        if count == 1:
            return 0
        key = _hashed("captions", self.seed, self.index)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(count)
        return int(order[self.epoch % count])


@dataclasses.dataclass(frozen=True)
class Turns:
    """The endless sequence of one process's draws, from `first_step` on.

    Of the global batch of step s, which is rows s*B to (s+1)*B, a process takes some of N equal
    `parts`, one after the other: p means rows [s*B + p*B/N, s*B + (p+1)*B/N). Epochs follow each
    other without a gap, inside a batch too.
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
        """Of a step in this process."""
        return self.batch_size // self.part_count * len(self.parts)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> Draw:
        size = self.batch_size // self.part_count
        step, row = divmod(number, self.rows)
        which, row = divmod(row, size)
        step += self.first_step
        position = step * self.batch_size + self.parts[which] * size + row
        epoch, index = divmod(position, self.dataset_size)
        if self.shuffle:
            seed = _hashed("order", self.seed, epoch) % 2**32
            index = index_shuffle(
                index, max_index=self.dataset_size - 1, seed=seed, rounds=_SHUFFLE_ROUNDS
            )
        return Draw(epoch, index, position, self.seed)
