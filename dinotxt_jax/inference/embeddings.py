"""Writes embeddings to disk as Parquet or npz, batch by batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference.model import Model
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import new_file

Write = Callable[[Sequence[str], Float[np.ndarray, "n D"]], None]


@contextlib.contextmanager
def new_embeddings(path: Address) -> Iterator[Write]:
    """Yields a function that writes names with embeddings; the file appears when the block ends.

    Args:
        path: FILE.parquet (columns name and embedding, a list of float32) or FILE.npz (arrays with
            the same names).

    Raises:
        UserError: the file suffix is unknown, or pyarrow is not installed for Parquet.
    """
    formats = {".parquet": _parquet, ".npz": _npz}
    if path.suffix not in formats:
        raise UserError(f"{path} ends in neither of {' and '.join(formats)}; name one of these.")
    with new_file(path) as partial, formats[path.suffix](partial) as write:
        yield write


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[Write]:
    names: list[str] = []
    embeddings: list[Float[np.ndarray, "n D"]] = []

    def write(batch: Sequence[str], rows: Float[np.ndarray, "n D"]) -> None:
        names.extend(batch)
        embeddings.append(rows)

    yield write
    with path.open("wb") as stream:
        np.savez(stream, name=np.asarray(names), embedding=np.concatenate(embeddings))


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(
            "Parquet needs pyarrow, which is not installed; run pip install pyarrow, or name a "
            "FILE.npz."
        ) from error
    writer: Any = None

    def write(names: Sequence[str], rows: Float[np.ndarray, "n D"]) -> None:
        nonlocal writer
        lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        table = pa.table({"name": pa.array(list(names)), "embedding": lists})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def embedded_files(
    model: Model, files: Sequence[Address], batch_size: int, threads: int, title: str = "embedding"
) -> Iterator[tuple[list[Address], Float[np.ndarray, "n D"]]]:
    """Yields descriptors for image files, batch by batch; logs and skips unreadable files.

    Raises:
        UserError: no image can be read.
    """

    def load(file: Address) -> tuple[Address, UInt8[np.ndarray, "h w 3"] | None]:
        try:
            return file, model.prepared(file)
        except UserError as error:
            logging.warning("skipped: %s", error)
            return file, None

    loaded = in_threads(files, load, threads, 2 * batch_size)
    readable = 0
    with progress_bar(len(files), 0, "image", title) as bar:
        while batch := list(itertools.islice(loaded, batch_size)):
            good = [(file, pixels) for file, pixels in batch if pixels is not None]
            if good:
                batches = model.stacked((pixels for _, pixels in good), batch_size)
                rows = np.concatenate(list(model.embed_batches(batches, batch_size)))
                yield [file for file, _ in good], rows
            readable += len(good)
            bar.update(len(batch))
    if not readable:
        raise UserError(
            f"none of the {len(files)} images could be read; the warnings above say why: repair or "
            "convert the files."
        )
    if readable < len(files):
        logging.warning("%d of %d images were skipped", len(files) - readable, len(files))


def embed_lines(model: Model, texts: Sequence[str], write: Write, batch_size: int) -> None:
    """Embeds texts and writes the features."""
    block = 64 * batch_size
    with progress_bar(len(texts), 0, "text", "embedding") as bar:
        for start in range(0, len(texts), block):
            lines = texts[start : start + block]
            write(lines, model.embed_texts(lines, batch_size))
            bar.update(len(lines))
