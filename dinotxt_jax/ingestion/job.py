"""The job that every process of an ingestion works on: shard k holds examples of input range k."""

from __future__ import annotations

import dataclasses

from dinotxt_jax.config import IngestionConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.retries import retried

# Files about single shards. They stay, so that a later run can check and repair every shard.
PART_FOLDER = "parts"
HASHES = ".hashes"


@dataclasses.dataclass(frozen=True)
class IngestionJob:
    """What is ingested, and where to; it pickles to a few bytes.

    Which examples a shard holds depends on the settings and the source only, never on the number of
    processes or on the order in which they finish.

    Attributes:
        config: the settings.
        output: the output folder, as text.
        examples: the number of examples in the source.
    """

    config: IngestionConfig
    output: str
    examples: int

    @property
    def folder(self) -> Address:
        """The output folder."""
        return to_address(self.output)

    @property
    def shards(self) -> range:
        """The shards, by number."""
        return range(-(-self.examples // self.config.shard_size))

    def span(self, shard: int) -> range:
        """Returns the indices of the source examples of a shard."""
        first = shard * self.config.shard_size
        return range(first, min(first + self.config.shard_size, self.examples))

    def shard_file(self, shard: int) -> Address:
        """Returns the ArrayRecord file of a shard."""
        count = len(self.shards)
        wide = max(5, len(str(count)))  # readers sort by name
        return self.folder / f"pairs-{shard:0{wide}d}-of-{count:0{wide}d}.array_record"

    def parts(self) -> list[Address]:
        """Returns the existing files about single shards."""
        folder = self.folder / PART_FOLDER
        # A folder in a bucket does not exist before it holds an object.
        return retried(lambda: list(folder.iterdir()) if folder.is_dir() else [])

    def part_file(self, shard: int) -> Address:
        """Returns the file with the counts of a shard, which is written after the shard."""
        return self.folder / PART_FOLDER / f"{shard:05d}.json"

    def hashes_file(self, shard: int) -> Address:
        """Returns the temporary file with the content hashes of the examples of a shard."""
        return self.folder / PART_FOLDER / f"{shard:05d}{HASHES}"

    def duplicates_file(self, shard: int) -> Address:
        """Returns the file with the numbers of the duplicates among the examples of a shard."""
        return self.folder / PART_FOLDER / f"{shard:05d}.duplicates.npy"

    def check_bad_fraction(self, bad: int, reason: str) -> None:
        """Raises `UserError` if too many examples cannot be stored; `reason` describes one."""
        limit = self.config.data.max_bad_fraction
        if bad > limit * self.examples:
            raise UserError(
                f"{bad} of {self.examples} examples cannot be stored (for instance {reason}), "
                f"expected at most config.data.max_bad_fraction = {limit:g}; repair the source and "
                "take another --output, or raise the limit and run the same command again."
            )
