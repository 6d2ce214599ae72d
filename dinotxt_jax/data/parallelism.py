"""Chooses how many threads and worker processes decode images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinotxt_jax.runtime.cpus import available_cpus
from dinotxt_jax.storage.addresses import is_remote, to_address

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig

# Threads also wait for storage: briefly for disks, long for buckets.
_FEWEST_THREADS, _FEWEST_FOR_BUCKETS = 2, 16
# Assumed, not measured: despite Python's global lock, about this many threads in a process compute
# at the same time.
_CPUS_PER_PROCESS = 4


def decoding_threads(threads: int, from_disk: bool = False) -> int:
    """Converts a setting to a number of threads.

    -1 means a thread per CPU, but at least 16, or at least 2 if all data is read `from_disk`: more
    threads than CPUs compete for Python's global lock (on two CPUs, 16 threads are a third slower
    than 2).
    """
    if threads >= 0:
        return threads
    return max(_FEWEST_THREADS if from_disk else _FEWEST_FOR_BUCKETS, available_cpus())


def training_threads(data: DataConfig) -> int:
    """Returns the number of threads that decode images for training."""
    sources = [settings for _, settings in data.sources("config.data")]
    paths = [path for part in sources for path in (part.path, part.image_root) if path]
    from_disk = not any(is_remote(to_address(path)) for path in paths)
    return decoding_threads(data.threads, from_disk)


def decoding_workers(workers: int) -> int:
    """Converts a setting to a number of worker processes.

    -1 means a worker per four CPUs, but no workers below eight CPUs, where threads are as fast.
    """
    if workers >= 0:
        return workers
    cpus = available_cpus()
    return cpus // _CPUS_PER_PROCESS if cpus >= 2 * _CPUS_PER_PROCESS else 0
