"""Handling for images that cannot be read or decoded: skip, count, and fail if too many."""

from __future__ import annotations

import math

from dinotxt_jax.errors import UserError


class BadImageError(Exception):
    """An image cannot be read or decoded; the pipeline skips and counts it."""


class MissingImageError(BadImageError):
    """An image file does not exist."""


def too_many_bad(bad: int, examples: int, limit: float) -> UserError:
    """Returns the error that `bad` of `examples` images exceed `config.data.max_bad_fraction`."""
    return UserError(
        f"{bad} of {examples} images ({bad / examples:.2%}) could not be read or decoded, expected "
        f"at most config.data.max_bad_fraction = {limit} ({limit:.2%}); the log names them: repair "
        "or remove them, or raise the limit."
    )


# Probability that a search gives up although no more than the allowed fraction is bad.
_CHANCE = 1e-12


def most_tries(limit: float, size: int) -> int:
    """Returns the number of different random images after which the search for a good one ends.

    If all of them are bad, either more than `limit` times `size` images are bad, or the search met
    a series of bad images that has a probability of 1e-12 within the limit.
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

    A bad image counts once in each epoch.

    The limit is `max_bad_fraction` times the number of examples seen, or times the data set size
    during the first epoch, so that a bad image among the first ten does not stop a long run.
    """

    def __init__(self, max_bad_fraction: float, dataset_size: int) -> None:
        self._max_bad_fraction = max_bad_fraction
        self._dataset_size = dataset_size
        self._examples = self._skipped = 0

    def update(self, examples: int, skipped: int) -> int:
        """Counts one global batch.

        Args:
            examples: number of rows in the batch.
            skipped: number of bad images that others replaced in these rows, over all processes.

        Returns:
            The number skipped since training began.

        Raises:
            UserError: this number exceeds the limit.
        """
        self._examples += examples
        self._skipped += skipped
        expected = max(self._examples, self._dataset_size)
        if self._skipped > self._max_bad_fraction * expected:
            raise too_many_bad(self._skipped, expected, self._max_bad_fraction)
        return self._skipped

    def get_state(self) -> dict[str, int]:
        """Returns the counts that `set_state` restores after a restart."""
        return {"seen": self._examples, "skipped": self._skipped}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues counting from `state`."""
        self._examples, self._skipped = int(state["seen"]), int(state["skipped"])
