"""Gathers small values from all processes without their devices.

A collective computation on the devices queues behind the train step, so that its result is known
only when the step has ended. The coordination service, which connects the processes anyway, answers
meanwhile.
"""

from __future__ import annotations

import json
from typing import Any

import jax

from dinotxt_jax.runtime import processes

# Milliseconds after which a process that waits for others looks whether it is closed.
_POLL = 2000
_LATE = "DEADLINE_EXCEEDED"


class ClosedError(Exception):
    """The exchange was closed while it waited for other processes."""


class Exchange:
    """Rounds in which every process sends one value and receives the values of all processes.

    All processes must create their exchanges in the same order, and make the same rounds in each.
    Any thread may call it, one at a time.
    """

    _count = 0

    def __init__(self) -> None:
        self._name = f"dinotxt_jax/exchange{Exchange._count}"
        Exchange._count += 1
        self._round = 0
        self._is_closed = False

    def gathered(self, value: Any) -> list[Any]:
        """Returns one JSON value of each process; all processes must call it.

        Raises:
            ClosedError: `close` was called meanwhile.
        """
        if not processes.several():
            return [value]
        # The first process collects all values and answers with all of them. Each process gives a
        # value only after it has read the answer of the round before, which can then be removed.
        folder, before = f"{self._name}/{self._round}", f"{self._name}/{self._round - 1}"
        self._round += 1
        client = _client()
        if processes.is_first():
            others = range(1, jax.process_count())
            texts = [self._waited(client, f"{folder}/{index}") for index in others]
            answer = json.dumps([value, *map(json.loads, texts)])
            client.key_value_set(f"{folder}/all", answer)
            client.key_value_delete(f"{before}/")
        else:
            client.key_value_set(f"{folder}/{jax.process_index()}", json.dumps(value))
            answer = self._waited(client, f"{folder}/all")
        return json.loads(answer)

    def close(self) -> None:
        """Ends a round that waits for processes which make no more rounds."""
        self._is_closed = True

    def _waited(self, client: Any, key: str) -> str:
        while not self._is_closed:
            try:
                return client.blocking_key_value_get(key, _POLL)
            except Exception as error:  # JAX has no public class for it
                if _LATE not in str(error):
                    raise
        raise ClosedError


def _client() -> Any:
    """Returns the connection to the coordination service, for which JAX has no public name."""
    from jax._src import distributed

    return distributed.global_state.client
