"""Divides a job between processes that were started together, for instance on the hosts of a pod.

The job needs no devices. Each process works on every n-th part; between stages all wait for each
other through the coordination service, for as long as the slowest takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax

from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.exchange import Exchange

PartT = TypeVar("PartT")
ValueT = TypeVar("ValueT", bool, int, str)
ResultT = TypeVar("ResultT")


class Team:
    """The processes that work on one job; a single process does everything.

    All processes must create it, and call its methods, in the same order.
    """

    def __init__(self) -> None:
        self._exchange = Exchange()

    def mine(self, parts: Sequence[PartT]) -> list[PartT]:
        """Returns the parts of this process; the order of `parts` is equal in all processes."""
        if not processes.several():
            return list(parts)
        return list(parts[jax.process_index() :: jax.process_count()])

    def wait(self) -> None:
        """Waits until all processes have finished their shares."""
        self._exchange.gathered(None)

    def first(self, action: Callable[[], ValueT]) -> ValueT:
        """Returns what the first process's `action` returns, a JSON value, in all processes.

        Raises:
            UserError: the action raised it in the first process; then all processes raise it.
        """
        value = self.only_first(action)
        answer: ValueT = self._exchange.gathered(value)[0]
        return answer

    def only_first(self, action: Callable[[], ResultT]) -> ResultT | None:
        """Returns the result of `action` in the first process, and None in the others.

        Raises:
            UserError: the action raised it in the first process; then all processes raise it.
        """
        failure, result = None, None
        if processes.is_first():
            try:
                result = action()
            except UserError as error:
                failure = error
        sentence, code = (str(failure), failure.exit_code) if failure else ("", 0)
        processes.raise_common(failure, [tuple(self._exchange.gathered([sentence, code])[0])])
        return result
