"""Measures how fast each source opens and reads examples in random order, without decoding them.

    python benchmarks/sources.py [--examples=5000] [--bytes=40000] [--threads=8] [--folder=DIR]

The same examples (random bytes as images, with a caption) are written in every format to a
temporary folder. They are read from the page cache, so the figures compare the sources, not disks.
"Index" is the pickled source's size per example; every worker process holds a copy.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import os
import pickle
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from machine import processor

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data import parquet
from dinotxt_jax.data.array_records import write_array_record
from dinotxt_jax.data.examples import Example, Source
from dinotxt_jax.data.sources import open_source

PER_SHARD = 1000


def examples(count: int, size: int) -> Iterator[Example]:
    """Yields examples with `size` random bytes instead of an image."""
    rng = np.random.default_rng(0)
    for number in range(count):
        caption = f"a photo of the thing with the number {number} in front of a wall"
        yield Example(rng.bytes(size), (caption,), f"{number:09d}")


def write_files(folder: Path, made: Iterator[Example]) -> None:
    """Writes image files with a JSONL and a CSV index."""
    with (
        (folder / "index.jsonl").open("w") as lines,
        (folder / "index.csv").open("w", newline="") as table,
    ):
        rows = csv.writer(table)
        rows.writerow(("file", "caption"))
        for example in made:
            name = f"{example.key}.jpg"
            (folder / name).write_bytes(example.image)
            lines.write(json.dumps({"image": name, "captions": example.captions}) + "\n")
            rows.writerow((name, example.captions[0]))


def write_tars(folder: Path, made: Iterator[Example]) -> None:
    """Writes tars in the img2dataset layout."""
    for number, example in enumerate(made):
        shard = folder / f"{number // PER_SHARD:05d}.tar"
        with tarfile.open(shard, "a" if shard.exists() else "w") as archive:
            record = json.dumps({"caption": example.captions[0], "key": example.key}).encode()
            parts = {"jpg": example.image, "json": record, "txt": example.captions[0].encode()}
            for ending, content in parts.items():
                member = tarfile.TarInfo(f"{example.key}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_arrow(folder: Path, made: Iterator[Example]) -> None:
    """Writes a Hugging Face data set, with 100 rows per record batch."""
    import pyarrow as pa

    schema = pa.schema([("image", pa.binary()), ("caption", pa.string())])
    with pa.ipc.new_stream(str(folder / "data.arrow"), schema) as stream:
        while rows := [example for example, _ in zip(made, range(100), strict=False)]:
            columns = [[row.image for row in rows], [row.captions[0] for row in rows]]
            stream.write_batch(pa.record_batch(list(map(pa.array, columns)), schema=schema))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def write_parquet(folder: Path, made: Iterator[Example]) -> None:
    """Writes a Parquet file with 100 rows per row group, and disables the row group cache."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("image", pa.binary()), ("caption", pa.string())])
    with pq.ParquetWriter(folder / "pairs.parquet", schema, compression="none") as writer:
        while rows := [example for example, _ in zip(made, range(100), strict=False)]:
            columns = [[row.image for row in rows], [row.captions[0] for row in rows]]
            writer.write_batch(pa.record_batch(list(map(pa.array, columns)), schema=schema))
    parquet._MOST_KEPT = 1


def write_records(folder: Path, made: Iterator[Example]) -> None:
    """Writes an ArrayRecord file."""
    write_array_record(folder / "pairs.array_record", made)


# (title, source, path in the folder, writer); without a writer, reads the previous format's folder.
FORMATS: tuple[tuple[str, str, str, Callable[[Path, Iterator[Example]], None] | None], ...] = (
    ("image files, JSONL", "jsonl", "index.jsonl", write_files),
    ("image files, CSV", "csv", "index.csv", None),
    ("ArrayRecord", "array_record", "", write_records),
    ("WebDataset tars", "webdataset", "", write_tars),
    ("Arrow (datasets)", "hf_datasets", "", write_arrow),
    ("Parquet", "parquet", "", write_parquet),
)


def seconds(action: Callable[[], object]) -> float:
    """Returns the duration of an action."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def row(source: Source, first: float, again: float, threads: int) -> str:
    """Measures a source and returns a table line."""
    order = np.random.default_rng(1).permutation(len(source)).tolist()
    alone = seconds(lambda: [source[index] for index in order])
    with ThreadPoolExecutor(threads) as pool:
        together = seconds(lambda: list(pool.map(source.__getitem__, order)))
    texts = seconds(lambda: [source.captions(index) for index in order])
    count = len(source)
    size = len(pickle.dumps(source)) / count
    rates = " | ".join(f"{count / taken:,.0f}" for taken in (alone, together, texts))
    return f"{first:.2f} | {again:.2f} | {rates} | {size:.1f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=40_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--folder", default=None, help="where to write; default: the system's")
    options = parser.parse_args()
    print(f"{options.examples} examples of {options.bytes} bytes on {processor()}\n")
    print("| format | open, s | again, s | examples/s, 1 thread ", end="")
    print(f"| {options.threads} threads | captions/s | index, bytes/example |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        os.environ["DINOTXT_CACHE"] = f"{temporary}/cache"
        folder = Path(temporary)
        for title, name, path, write in FORMATS:
            if write is not None:
                folder = Path(temporary, name)
                folder.mkdir()
                write(folder, examples(options.examples, options.bytes))
            config = DataConfig(source=name, path=str(folder / path))
            open_source(DataConfig(num_scenes=1))  # imports
            first, again = (seconds(functools.partial(open_source, config)) for _ in range(2))
            print(f"| {title} | {row(open_source(config), first, again, options.threads)} |")


if __name__ == "__main__":
    main()
