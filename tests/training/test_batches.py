"""The iterator over global batches: placement on the mesh, resumption and termination."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import config

from dinotxt_jax import UserError, sharding
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import STORAGE
from dinotxt_jax.runtime.termination import Termination
from dinotxt_jax.training.batches import Batches, ReadingError
from dinotxt_jax.training.texts import TokenRows, make_tokenizer


def open_batches(termination: Termination, check: Callable[[], None] = lambda: None) -> Batches:
    """Opens batches of 8 synthetic scenes on all eight devices."""
    run = config(Path())
    source = open_source(run.data)
    tokenizer = make_tokenizer(run, Path("nowhere"), source)
    return Batches(run, source, None, tokenizer, sharding.make_mesh(), termination, check)


@pytest.fixture
def termination() -> Termination:
    return Termination()


@pytest.fixture
def batches(termination: Termination) -> Iterator[Batches]:
    opened = open_batches(termination)
    yield opened
    opened.close()


def test_a_batch_is_sharded_over_all_devices(batches: Batches) -> None:
    batch = next(batches)
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.arrays.items()}
    assert shapes == {"image": ((8, 56, 56, 3), "uint8"), "tokens": ((8, 64), "int32")}
    for array in batch.arrays.values():
        assert {len(shard.data) for shard in array.addressable_shards} == {1}
    assert batch.token_rows == TokenRows(rows=8, length=64, overflow=False)
    assert batch.waited > 0
    assert (batch.bad_images, batch.exit_code) == (0, 0)


def test_the_state_is_the_position_after_the_last_batch(batches: Batches) -> None:
    first = next(batches)
    state = batches.get_state()
    second = next(batches)
    assert not np.array_equal(first.arrays["image"], second.arrays["image"])
    resumed = open_batches(Termination())
    resumed.set_state(state)
    again = next(resumed)
    resumed.close()
    for name, array in second.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
    assert resumed.get_state() == batches.get_state()


def test_the_batch_after_a_request_to_terminate_is_the_last(
    batches: Batches, termination: Termination
) -> None:
    assert next(batches).exit_code == 0
    termination.exit_code = 143
    assert next(batches).exit_code == 143


def test_after_a_failed_check_nothing_may_be_saved_and_after_failed_reading_the_state_may(
    termination: Termination, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[UserError] = []

    def check() -> None:
        if failures:
            raise failures[0]

    original, reads = Batches._read, []

    def read(self: Batches) -> Any:
        reads.append(original(self))
        if len(reads) > 1:
            raise UserError("no disk", STORAGE)
        return reads[0]

    # Before the first batch, since the thread reads the second one without a request for it.
    monkeypatch.setattr(Batches, "_read", read)
    batches = open_batches(termination, check)
    next(batches)
    position = batches.get_state()
    with pytest.raises(ReadingError, match="no disk") as ended:
        next(batches)
    assert (ended.value.position, ended.value.exit_code) == (position, STORAGE)
    failures.append(UserError("the lock is lost"))
    with pytest.raises(UserError, match="the lock is lost") as refused:
        next(batches)
    assert not isinstance(refused.value, ReadingError)
    batches.close()


def test_the_next_batch_is_prepared_during_the_step_but_none_after_the_last(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = threading.Semaphore(0)
    original, threads = Batches._place, []

    def placed(self: Batches, *arguments: Any) -> Any:
        threads.append(threading.current_thread())
        result = original(self, *arguments)
        made.release()
        return result

    monkeypatch.setattr(Batches, "_place", placed)
    next(batches)
    for _ in range(2):  # the first batch, and the second without a request for it
        assert made.acquire(timeout=30)
    assert threading.main_thread() not in threads
    for _ in range(7):
        next(batches)
    batches.close()  # waits for the thread, which prepares nothing more
    assert len(threads) == 8  # the run has eight steps
    assert batches.get_state()["data"]["next_step"] == 8


def test_only_waiting_while_the_devices_have_nothing_to_do_counts(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading ends 0.3 s after the step, so that the result depends on no other process."""

    class Result:
        """A step that ends `busy` seconds after the first look."""

        def __init__(self, busy: float):
            self._busy, self._first_look = busy, 0.0
            self.ended = threading.Event()

        def is_ready(self) -> bool:
            self._first_look = self._first_look or time.monotonic()
            if time.monotonic() < self._first_look + self._busy:
                return False
            self.ended.set()
            return True

    original = Batches._read
    release = threading.Semaphore(0)

    def slow(self: Batches) -> Any:
        assert release.acquire(timeout=60)
        return original(self)

    def waited(result: Result | None, seconds: float) -> tuple[float, float]:
        """Returns the time that counts, and the time that `next` takes."""

        def end_reading() -> None:
            if result is None or result.ended.wait(seconds if result._busy > 60 else 60):
                time.sleep(seconds)
            release.release()

        if result is not None:
            batches.started(result)  # type: ignore[arg-type]
        threading.Thread(target=end_reading).start()
        started = time.perf_counter()
        return next(batches).waited, time.perf_counter() - started

    monkeypatch.setattr(Batches, "_read", slow)
    counted, _ = waited(None, 0.3)
    assert counted >= 0.2  # the thread that ends reading may start first
    counted, _ = waited(Result(1000), 0.3)
    assert counted == 0  # the step takes longer than reading
    counted, total = waited(Result(0.3), 0.3)
    assert 0.25 <= counted <= total - 0.3
    release.release()  # for the batch that is being prepared
