"""Clusters and samples random embeddings: measures time, memory, and how far sampling balances.

    python benchmarks/image_curation.py [--points=1000000] [--levels=10000,1000,100]
        [--coarse=100] [--memory_gib=0.25] [--rounds=2]

The embeddings are 384-dimensional unit vectors around random centres ("concepts") with frequencies
that follow Zipf's law. They exceed the memory limit, so each pass reads them from disk. Memory is
this process's peak resident size, before and after clustering. The sample must have exactly the
requested size; the table compares concept frequencies in the sample and the pool.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import device

from dinotxt_jax.config import CurationConfig, DataConfig
from dinotxt_jax.config.image_curation import ImageCurationConfig
from dinotxt_jax.curation.embeddings import EMBEDDINGS_FORMAT, shard_rows, write_shard
from dinotxt_jax.curation.hierarchy import cluster
from dinotxt_jax.curation.sampling import sample_clusters
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.kept import read_kept
from dinotxt_jax.data.sources import open_source

WIDTH = 384


def write_pool(folder: Path, data: DataConfig, concepts: int) -> np.ndarray:
    """Writes embeddings for a pool, and returns each embedding's concept."""
    rng = np.random.default_rng(0)
    count = data.num_scenes
    frequencies = 1 / np.arange(1, concepts + 1)
    labels = rng.choice(concepts, count, p=frequencies / frequencies.sum())
    centres = rng.normal(size=(concepts, WIDTH)).astype(np.float32)
    size = shard_rows(count)
    description = {
        "format": EMBEDDINGS_FORMAT,
        "pool": data_identity(open_source(data), 0),
        "backbone": "drawn",
        "dtype": "float32",
        "width": WIDTH,
        "shard_rows": size,
    }
    folder.mkdir()
    (folder / "embeddings.json").write_text(json.dumps(description))
    for shard, start in enumerate(range(0, count, size)):
        shard_labels = labels[start : start + size]
        rows = centres[shard_labels] + 0.5 * rng.normal(size=(len(shard_labels), WIDTH))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        write_shard(folder, shard, rows.astype(np.float16), [])
    return labels


def described(title: str, labels: np.ndarray, concepts: int) -> str:
    """Returns a table row: the most frequent concepts' shares, and the effective concept number."""
    shares = np.sort(np.bincount(labels, minlength=concepts))[::-1] / len(labels)
    present = shares[shares > 0]
    effective = np.exp(-(present * np.log(present)).sum())
    return (
        f"| {title} | {len(labels):,} | {shares[0]:.2%} | {shares[:10].sum():.2%} | "
        f"{effective:.0f} of {concepts} |"
    )


def peak() -> float:
    """Returns this process's peak resident size so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Prints time, memory and a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--levels", default="10000,1000,100")
    parser.add_argument("--coarse", type=int, default=100)
    parser.add_argument("--concepts", type=int, default=1000)
    parser.add_argument("--memory_gib", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=20)
    arguments = parser.parse_args()
    print(f"{device()}, load {os.getloadavg()[0]:.0f}; {arguments}")
    levels = tuple(map(int, arguments.levels.split(",")))
    image = ImageCurationConfig(
        levels=levels,
        rounds=(0, *[arguments.rounds] * (len(levels) - 1)),
        coarse=arguments.coarse,
        iterations=arguments.iterations,
        memory_gib=arguments.memory_gib,
    )
    data = DataConfig(num_scenes=arguments.points)
    target = arguments.points // 50
    config = CurationConfig(data=data, image=image, target=target)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        concepts = write_pool(folder / "embeddings", data, arguments.concepts)
        before, start = peak(), time.perf_counter()
        print(cluster(config, [str(folder / "embeddings")], folder / "clusters"))
        seconds = time.perf_counter() - start
        size = arguments.points * WIDTH * 2 / 2**30
        print(
            f"clustering: {seconds:.0f} s ({arguments.points / seconds:,.0f} points/s), memory "
            f"{before:.2f} -> {peak():.2f} GiB; the embeddings have {size:.2f} GiB"
        )
        start = time.perf_counter()
        print(sample_clusters(config, [str(folder / "clusters")], folder / "list.npz"))
        print(f"sampling: {time.perf_counter() - start:.1f} s")
        counts = read_kept(folder / "list.npz", "the list").rows.counts(arguments.points)
    if counts.sum() != target:
        raise SystemExit(f"{counts.sum()} examples are sampled, expected {target}")
    print("\n| | examples | most frequent concept | ten most frequent | effective concepts |")
    print("|---|---|---|---|---|")
    print(described("pool", concepts, arguments.concepts))
    print(described("balanced sample", np.repeat(concepts, counts), arguments.concepts))


if __name__ == "__main__":
    main()
