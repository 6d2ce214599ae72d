"""Compares k-means with scikit-learn and faiss: inertia and points per second, in one run.

    pip install scikit-learn faiss-cpu
    python benchmarks/kmeans.py [--points=50000] [--clusters=1000] [--width=384] [--steps=10]

All libraries start from the same centroids (this project's greedy k-means++), make the same number
of Lloyd steps in float32, and use the same `--threads` cores. Points are drawn around random
centres with very different frequencies. Speed is measured from runs with two different step counts,
which alternate so that load on the machine affects all libraries. The difference between their
minimum times excludes copies and the assignment after the last step. Points per CPU second remain
comparable if other processes share the cores.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
from machine import device

# Lloyd step counts of the short and the long run; speed is measured from the time difference.
LENGTHS = (1, 4)


def with_threads(count: int) -> None:
    """Restricts this process to `count` cores; must run before any library is imported."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    os.environ |= {"OMP_NUM_THREADS": str(count), "JAX_PLATFORMS": "cpu"}


def points(count: int, width: int, centres: int) -> np.ndarray:
    """Draws unit vectors around `centres` centres with frequencies that follow Zipf's law."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, centres + 1)
    labels = rng.choice(centres, count, p=shares / shares.sum())
    rows = rng.normal(size=(centres, width))[labels] + rng.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def inertia(rows: np.ndarray, centroids: np.ndarray) -> float:
    """Returns the sum of squared distances to the nearest centroids, accumulated in float64."""
    total = 0.0
    for start in range(0, len(rows), 8192):
        block = rows[start : start + 8192]
        labels = ((centroids**2).sum(1) - 2 * block @ centroids.T).argmin(1)
        total += float(((block - centroids[labels]).astype(np.float64) ** 2).sum())
    return total


def ours(rows: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """Returns a function that runs this project's Lloyd steps."""
    from dinotxt_jax import sharding
    from dinotxt_jax.curation.kmeans import Method, lloyd
    from dinotxt_jax.curation.points import HeldPoints, PlacedPoints

    placed = PlacedPoints(HeldPoints(rows), sharding.make_mesh(), 2**40)
    method = Method("float32", unit_norm=False)

    def run(centroids: np.ndarray, steps: int) -> np.ndarray:
        return lloyd(placed, centroids, range(steps), method, "k-means", lambda *_: None)

    return run


def sklearn(rows: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """Returns a function that runs scikit-learn's Lloyd steps."""
    from sklearn.cluster import KMeans

    def run(centroids: np.ndarray, steps: int) -> np.ndarray:
        # tol=0 disables early stopping. A final assignment adds half a step.
        settings = {"n_init": 1, "max_iter": steps, "tol": 0, "algorithm": "lloyd"}
        return KMeans(len(centroids), init=centroids, **settings).fit(rows).cluster_centers_

    return run


def faiss(rows: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """Returns a function that runs faiss's Lloyd steps."""
    from faiss import Kmeans

    def run(centroids: np.ndarray, steps: int) -> np.ndarray:
        count, width = centroids.shape
        # faiss subsamples if there are more points per cluster than this limit.
        kmeans = Kmeans(width, count, niter=steps, max_points_per_centroid=len(rows))
        kmeans.train(rows, init_centroids=centroids.copy())
        return kmeans.centroids

    return run


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with_threads(arguments.threads)
    from dinotxt_jax import sharding
    from dinotxt_jax.curation.kmeans import Method, seeded
    from dinotxt_jax.curation.points import HeldPoints

    rows = points(arguments.points, arguments.width, 3 * arguments.clusters)
    print(f"{device()}; {arguments}")
    method = Method("float32", unit_norm=False)
    start = time.perf_counter()
    initial = seeded(
        HeldPoints(rows), arguments.clusters, "benchmark", 0, 16, method, sharding.make_mesh()
    )
    print(f"seeding, with compilation: {time.perf_counter() - start:.1f} s")
    sides = {"dinotxt_jax": ours(rows), "scikit-learn": sklearn(rows), "faiss": faiss(rows)}
    results = {name: run(initial, arguments.steps) for name, run in sides.items()}
    times = {name: np.zeros((arguments.repeats, 2, 2)) for name in sides}
    for repeat in range(arguments.repeats):
        for name, run in sides.items():
            for column, steps in enumerate(LENGTHS):
                before = np.array([time.perf_counter(), time.process_time()])
                run(initial, steps)
                after = np.array([time.perf_counter(), time.process_time()])
                times[name][repeat, column] = after - before
    print("\n| library | inertia | relative | points/s | points per CPU second |")
    print("|---|---|---|---|---|")
    reference = inertia(rows, results["dinotxt_jax"])
    for name, centroids in results.items():
        library_inertia = inertia(rows, centroids)
        short, long = times[name].min(axis=0)
        speeds = arguments.points * (LENGTHS[1] - LENGTHS[0]) / (long - short)
        cells = f"{library_inertia:.6g} | {library_inertia / reference:.5f}"
        print(f"| {name} | {cells} | {speeds[0]:,.0f} | {speeds[1]:,.0f} |")


if __name__ == "__main__":
    main()
