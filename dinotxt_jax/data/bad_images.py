"""Handles images that cannot be read or decoded: skips and counts them, fails if too many."""

from __future__ import annotations

import math

from dinotxt_jax.errors import UserError


class BadImageError(Exception):
    """An image cannot be read or decoded; the pipeline skips and counts it."""


class MissingImageError(BadImageError):
    """An image file does not exist."""


def too_many_bad(bad: int, examples: int, limit: float) -> UserError:
    """Returns the error for more than `max_bad_fraction` bad images (`bad` of `examples`)."""
    return UserError(
        f"{bad} of {examples} images ({bad / examples:.2%}) could not be read or decoded, expected "
        f"at most config.data.max_bad_fraction = {limit} ({limit:.2%}); the log names them: repair "
        "or remove them, or raise the limit."
    )


def nothing_passes(count: int, section: str) -> UserError:
    """Returns the error for filters that exclude all `count` randomly drawn examples."""
    return UserError(
        f"none of {count} examples drawn from {section} passes the filters, expected enough "
        f"examples to train on; correct {section}.min_side, max_aspect_ratio, min_caption_length "
        "or max_caption_length."
    )


# Probability that a search gives up although the bad fraction is within the limit.
_CHANCE = 1e-12


def most_tries(limit: float, size: int) -> int:
    """Returns how many distinct random images to try before giving up on finding a good image.

    If all these images are bad, either more than `limit * size` images are bad, or the search met
    a run of bad images whose probability is at most 1e-12 when the limit holds.
    """
    if limit == 0:
        return 1
    allowed = math.floor(limit * size) + 1
    by_chance = math.ceil(math.log(_CHANCE) / math.log(limit)) if limit < 1 else size
    return min(allowed, by_chance, size)


def bad_in_evaluation(index: int, error: BadImageError) -> UserError:
    """Returns the error for a bad evaluation image; skipping it would change the result."""
    return UserError(
        f"example {index} cannot be evaluated ({error}), expected an image that decodes; repair or "
        "remove it."
    )


class BadImageMonitor:
    """Counts the bad images that a run skipped, and stops the run when there are too many.

    A bad image counts once per epoch.

    The limit is `max_bad_fraction` times the number of examples seen, or times the data set size
    during the first epoch, so that a bad image among the first ten does not stop a long run.

    Attributes:
        skipped: number of bad images since training began.
        filtered: number of drawn examples that the filters excluded since training began.
    """

    def __init__(self, max_bad_fraction: float, dataset_size: int) -> None:
        self._max_bad_fraction = max_bad_fraction
        self._dataset_size = dataset_size
        self._examples = self.skipped = self.filtered = 0

    def update(self, examples: int, skipped: int, filtered: int) -> None:
        """Counts a global batch.

        Args:
            examples: number of rows in the batch.
            skipped: number of bad images replaced in these rows, over all processes.
            filtered: number of filtered examples replaced in these rows.

        Raises:
            UserError: the number of bad images exceeds the limit.
        """
        self._examples += examples
        self.skipped += skipped
        self.filtered += filtered
        expected = max(self._examples, self._dataset_size)
        if self.skipped > self._max_bad_fraction * expected:
            raise too_many_bad(self.skipped, expected, self._max_bad_fraction)

    def get_state(self) -> dict[str, int]:
        """Returns the counts that `set_state` restores after a restart."""
        return {"seen": self._examples, "skipped": self.skipped, "filtered": self.filtered}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues counting from `state`."""
        self._examples, self.skipped = int(state["seen"]), int(state["skipped"])
        self.filtered = int(state.get("filtered", 0))  # absent in older checkpoints
