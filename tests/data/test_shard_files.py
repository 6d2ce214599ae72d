"""Shard files of a feature cache that many threads open at the same time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinotxt_jax.data.shard_files import ShardFile


def test_one_thread_at_a_time_parses_a_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python 3.11 raises SystemError when two threads parse and memory is collected (gh-106905).
    np.save(tmp_path / "shard.npy", np.zeros((3, 5, 2), np.float32))
    read, busy = np.lib.format.read_array_header_1_0, threading.Lock()

    def slow(stream: Any) -> Any:
        assert busy.acquire(blocking=False), "another thread parses"
        time.sleep(0.01)
        result = read(stream)
        busy.release()
        return result

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", slow)
    with ThreadPoolExecutor(8) as threads:
        opened = threads.map(
            lambda _: ShardFile(tmp_path / "shard.npy", 3, np.dtype(np.float32)), range(16)
        )
        assert {file.shape for file in opened} == {(5, 2)}
