"""The ingestion job that all processes share: shard k stores examples from input range k."""

from __future__ import annotations

import dataclasses

from dinotxt_jax.config import IngestionConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.retries import retried

# Files about single shards, kept so that a later run can check and repair every shard.
PART_FOLDER = "parts"
HASHES = ".hashes"


@dataclasses.dataclass(frozen=True)
class IngestionJob:
    """The source settings and the destination; pickles to a few bytes.

    A shard's content depends only on the settings and the source, never on the number of processes
    or the order in which they finish.

    Attributes:
        config: the settings.
        output: the output folder, as a string.
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
        """The shard numbers."""
        return range(-(-self.examples // self.config.shard_size))

    def span(self, shard: int) -> range:
        """Returns the source indices that belong to a shard."""
        first = shard * self.config.shard_size
        return range(first, min(first + self.config.shard_size, self.examples))

    def shard_file(self, shard: int) -> Address:
        """Returns the path where a shard's ArrayRecord file is written."""
        count = len(self.shards)
        wide = max(5, len(str(count)))  # readers sort by name, so all numbers need equal width
        return self.folder / f"pairs-{shard:0{wide}d}-of-{count:0{wide}d}.array_record"

    def parts(self) -> list[Address]:
        """Lists the existing files in the part folder."""
        folder = self.folder / PART_FOLDER
        # A folder in a bucket does not exist until it contains an object.
        return retried(lambda: list(folder.iterdir()) if folder.is_dir() else [])

    def part_file(self, shard: int) -> Address:
        """Returns the path for a shard's counts; the file is written after the shard."""
        return self.folder / PART_FOLDER / f"{shard:05d}.json"

    def hashes_file(self, shard: int) -> Address:
        """Returns the path for a shard's content hashes, a temporary file."""
        return self.folder / PART_FOLDER / f"{shard:05d}{HASHES}"

    def duplicates_file(self, shard: int) -> Address:
        """Returns the path for the positions of a shard's duplicates."""
        return self.folder / PART_FOLDER / f"{shard:05d}.duplicates.npy"

    def check_bad_fraction(self, bad: int, reason: str) -> None:
        """Raises `UserError` if too many examples cannot be stored.

        Args:
            bad: number of examples that cannot be stored.
            reason: why a certain example cannot be stored, quoted in the message.
        """
        limit = self.config.data.max_bad_fraction
        if bad > limit * self.examples:
            raise UserError(
                f"{bad} of {self.examples} examples cannot be stored (for instance {reason}), "
                f"expected at most config.data.max_bad_fraction = {limit:g}; repair the source and "
                "give another --output, or raise the limit and run the same command again."
            )
