"""The order of training examples, and the randomness of each example.

Augmentation depends on (seed, epoch, index) only, and the order on (seed, epoch) only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys

import numpy as np
from grain.experimental import index_shuffle

_SHUFFLE_ROUNDS = 4  # Grain's default
MAX_EXAMPLES = 2**32 - 1  # limit of Grain's 32-bit index shuffle


def _hashed(purpose: str, *values: int) -> int:
    """Hashes the arguments to 128 bits, equally in every process and version."""
    data = b"".join(value.to_bytes(8, "little") for value in values)
    digest = hashlib.blake2b(data, digest_size=16, person=purpose.encode())
    return int.from_bytes(digest.digest(), "little")


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """One use of an example in training.

    Attributes:
        epoch: number of complete passes over the data before this one.
        index: index of the example in the source.
        position: position in training, `step * batch_size + row`.
        seed: seed of the run.
    """

    epoch: int
    index: int
    position: int
    seed: int

    def rng(self) -> np.random.Generator:
        """Creates the generator for the augmentation, determined by (seed, epoch, index)."""
        key = _hashed("augmentation", self.seed, self.epoch, self.index)
        return np.random.Generator(np.random.Philox(key=key))

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
    """The endless sequence of one process's draws, from `first_step` on.

    The global batch of step s consists of the rows s*B to (s+1)*B and is split into N equal parts.
    A process reads its `parts` in order; part p is the rows [s*B + p*B/N, s*B + (p+1)*B/N). Epochs
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
            index = index_shuffle(
                index, max_index=self.dataset_size - 1, seed=seed, rounds=_SHUFFLE_ROUNDS
            )
        return Draw(epoch, index, position, self.seed)
