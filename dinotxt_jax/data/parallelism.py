"""How many threads and worker processes decode images, and how a worker process starts."""

from __future__ import annotations

import os

from dinotxt_jax.runtime import termination
from dinotxt_jax.runtime.cpus import available_cpus

# Threads also wait for storage, for which two CPUs need more than two.
_FEWEST_THREADS = 16
# An assumption, not measured: Python's global lock lets about this many threads of a process
# compute at the same time.
_CPUS_PER_PROCESS = 4


def decoding_threads(threads: int) -> int:
    """Returns the number of threads that a setting means; -1 means one per CPU, at least 16."""
    return threads if threads >= 0 else max(_FEWEST_THREADS, available_cpus())


def decoding_workers(workers: int) -> int:
    """Returns the number of worker processes that a setting means.

    -1 means a worker for every four CPUs, and none below eight CPUs, where threads are as fast.
    """
    if workers >= 0:
        return workers
    cpus = available_cpus()
    return cpus // _CPUS_PER_PROCESS if cpus >= 2 * _CPUS_PER_PROCESS else 0


def start_worker(threads: int, worker: int, count: int) -> None:
    """Prepares a worker process, before it decodes.

    Args:
        threads: number of decoding threads in this process.
        worker: number of this process.
        count: number of worker processes.
    """
    termination.ignore(worker, count)
    # The library that resizes has threads of its own, by default one per CPU in every process.
    os.environ.setdefault("RAYON_NUM_THREADS", str(min(max(1, threads), available_cpus())))
