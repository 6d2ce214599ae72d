"""Folders of image embeddings: written shard by shard, verified when they are read.

    embeddings.json  description: the pool (`data.identity`), the backbone's fingerprint, settings
    s00000.npy       float16 [examples, width] for one shard of consecutive examples
    s00000.json      CRC-32 of each block of `BLOCK` examples, and the examples whose images are bad

An example whose image cannot be read has zeros. A shard exists when its npy file does, which is
written last; an interrupted run continues with the first missing shard.
"""

from __future__ import annotations

import io
import json
import threading
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float16

from dinotxt_jax.config.data import EXACT
from dinotxt_jax.data.identity import difference
from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.byte_ranges import ByteRanges
from dinotxt_jax.storage.files import new_file, read_json, write_text
from dinotxt_jax.storage.retries import retried

EMBEDDINGS_FORMAT = "dinotxt_jax embeddings 1"
# Examples that share a checksum: the least that is read.
BLOCK_ROWS = 1024
_CURE = "run the same python -m dinotxt_jax.embed again, which repairs it"
# Threads that read facts about shards, how many are read ahead, and files that are kept open.
_THREADS = 16
_AHEAD = 64
_OPEN = 64
# npy headers of two dimensions are padded to this many bytes.
_HEADER = 128


def shard_rows(examples: int) -> int:
    """Returns the number of examples per shard, so that several processes have work each."""
    size = BLOCK_ROWS
    while size < 2**16 and size * 64 < examples:
        size *= 2
    return size


def embedding_file(folder: Address, shard: int) -> Address:
    """Returns the file with the embeddings of a shard."""
    return folder / f"s{shard:05d}.npy"


def _facts_file(folder: Address, shard: int) -> Address:
    return folder / f"s{shard:05d}.json"


def write_shard(
    folder: Address, shard: int, rows: Float16[np.ndarray, "n d"], bad: Sequence[int]
) -> None:
    """Writes a shard.

    Args:
        folder: the folder.
        shard: number of the shard.
        rows: the embeddings.
        bad: examples in the shard, from 0, without an image.
    """
    facts = {"crc32": block_sums(rows), "bad": list(map(int, bad))}
    write_text(_facts_file(folder, shard), json.dumps(facts) + "\n")
    with new_file(embedding_file(folder, shard)) as partial, partial.open("wb") as file:
        np.save(file, rows)


def block_sums(rows: Float16[np.ndarray, "n d"]) -> list[int]:
    """Returns the CRC-32 of each block."""
    starts = range(0, len(rows), BLOCK_ROWS)
    return [zlib.crc32(rows[s : s + BLOCK_ROWS].tobytes()) for s in starts]


def read_embeddings_description(folder: Address) -> dict[str, Any]:
    """Reads embeddings.json.

    Raises:
        UserError: the folder holds no embeddings.
    """
    path = folder / "embeddings.json"
    cure = "embed the pool with python -m dinotxt_jax.embed --config=FILE, or correct the path"
    if not retried(path.exists):
        raise UserError(
            f"{folder} holds no embeddings.json, expected a folder of embeddings; {cure}."
        )
    description = read_json(path, "the description of embeddings", cure)
    if description.get("format") != EMBEDDINGS_FORMAT:
        raise UserError(
            f"{path} has the format {description.get('format')!r}, expected {EMBEDDINGS_FORMAT!r}; "
            f"{cure}."
        )
    # Embeddings from before these settings were recorded.
    rule = "center_crop" if description.get("resize") else "squash"
    return {"rule": rule, "decoder": EXACT} | description


def check_pool(stored: Mapping[str, Any], current: Mapping[str, Any], path: Address) -> None:
    """Raises `UserError` if embeddings, clusters or a list belong to another pool.

    Args:
        stored: the pool's identity when they were made.
        current: the identity of `config.data`.
        path: their folder or file.
    """
    changes = difference(stored, current)
    if changes:
        raise UserError(
            f"{path} was made for another pool: {changes}; curate this pool with another --output, "
            "or correct config.data."
        )


class Embeddings:
    """The embeddings of a pool, read from a folder without holding them in memory.

    Args:
        folder: the folder.

    Attributes:
        description: content of embeddings.json.
        width: number of elements per embedding.
        itemsize: bytes per element.
        missing: the examples without an embedding, ascending.

    Raises:
        UserError: the folder holds no embeddings, or shards are missing or damaged.
    """

    def __init__(self, folder: Address) -> None:
        self.folder, self.description = folder, read_embeddings_description(folder)
        self.width, self.itemsize = int(self.description["width"]), 2
        self._count = int(self.description["pool"]["examples"])
        self._rows = int(self.description["shard_rows"])
        shards = range(-(-self._count // self._rows))
        missing = [
            shard
            for shard, is_there in enumerate(in_threads(shards, self._exists, _THREADS, _AHEAD))
            if not is_there
        ]
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of {len(shards)} shards, first "
                f"{embedding_file(folder, missing[0]).name}, expected all; run the same python -m "
                "dinotxt_jax.embed again to complete it."
            )
        facts = list(in_threads(shards, self._read_facts, _THREADS, _AHEAD))
        self._sums = [fact["crc32"] for fact in facts]
        bad = [shard * self._rows + row for shard in shards for row in facts[shard]["bad"]]
        self.missing = np.array(bad, np.int64)
        self._files: dict[int, ByteRanges] = {}
        self._lock = threading.Lock()

    def _exists(self, shard: int) -> bool:
        return retried(embedding_file(self.folder, shard).exists)

    def _read_facts(self, shard: int) -> dict[str, Any]:
        return _read_facts(self.folder, shard, self.rows_in(shard))

    def __len__(self) -> int:
        return self._count

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide the embeddings of a pool."""
        others = ("format", "pool", "shard_rows")
        return {key: value for key, value in self.description.items() if key not in others}

    def rows_in(self, shard: int) -> int:
        """Returns the number of examples in a shard."""
        return min(self._rows, self._count - shard * self._rows)

    def name(self, row: int) -> str:
        """Returns a name of an example's embedding for messages."""
        return f"the embedding of example {row} in {self.folder}"

    def present(self, start: int, stop: int) -> Bool[np.ndarray, " n"]:
        """Returns the mask of the examples that have an embedding."""
        first, last = np.searchsorted(self.missing, (start, stop))
        mask = np.ones(stop - start, bool)
        mask[self.missing[first:last] - start] = False
        return mask

    def read(self, start: int, stop: int) -> Float16[np.ndarray, "n d"]:
        """Reads consecutive embeddings.

        Raises:
            UserError: they are damaged.
        """
        pieces = []
        for shard in range(start // self._rows, -(-stop // self._rows)):
            first = shard * self._rows
            low, high = max(start - first, 0), min(stop - first, self._rows)
            pieces.append(self._read_blocks(shard, low, high))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self._none()])

    def _none(self) -> Float16[np.ndarray, "0 d"]:
        return np.zeros((0, self.width), np.float16)

    def _read_blocks(self, shard: int, low: int, high: int) -> Float16[np.ndarray, "n d"]:
        first = low // BLOCK_ROWS * BLOCK_ROWS
        last = min(-(-high // BLOCK_ROWS) * BLOCK_ROWS, self.rows_in(shard))
        size = self.width * self.itemsize
        content = self._opened(shard).read(_HEADER + first * size, _HEADER + last * size)
        path = embedding_file(self.folder, shard)
        if len(content) != (last - first) * size:
            raise UserError(f"{path} is damaged (it has been truncated); {_CURE}.")
        rows = np.frombuffer(content, np.float16).reshape(-1, self.width)
        expected = self._sums[shard][first // BLOCK_ROWS : -(-last // BLOCK_ROWS)]
        if block_sums(rows) != expected:
            raise UserError(f"{path} is damaged (it differs from what was written); {_CURE}.")
        return rows[low - first : high - first]

    def _opened(self, shard: int) -> ByteRanges:
        """Returns a shard's file; only the newest few are kept open."""
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                # A shard that was embedded again is no mistake: its checksums decide.
                file = ByteRanges(embedding_file(self.folder, shard), watch=False)
                self._files[shard] = file
                if len(self._files) > _OPEN:
                    del self._files[next(iter(self._files))]
            return file


def _read_facts(folder: Address, shard: int, rows: int) -> dict[str, Any]:
    path = _facts_file(folder, shard)
    try:
        facts = read_json(path, "the checksums of a shard", _CURE)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing, expected the checksums of a shard; {_CURE}."
        ) from error
    sums, bad = facts.get("crc32"), facts.get("bad")
    if (
        not isinstance(sums, list)
        or len(sums) != -(-rows // BLOCK_ROWS)
        or not isinstance(bad, list)
    ):
        raise UserError(f"{path} is damaged (it lacks checksums); {_CURE}.")
    return facts


def shard_state(folder: Address, shard: int, rows: int, width: int) -> tuple[str, list[int]]:
    """Returns why a shard has to be embedded, or "" if it is whole, and its bad examples."""
    path = embedding_file(folder, shard)
    if not retried(path.exists):
        return "missing", []
    try:
        facts = _read_facts(folder, shard, rows)
        stored = np.load(io.BytesIO(retried(path.read_bytes)), allow_pickle=False)
    except (UserError, ValueError, EOFError) as error:
        return f"{path} is damaged ({error})", []
    if stored.shape != (rows, width) or stored.dtype != np.float16:
        return f"{path} holds {stored.dtype} {list(stored.shape)}", []
    if block_sums(stored) != facts["crc32"]:
        return f"{path} differs from what was written", []
    return "", facts["bad"]
