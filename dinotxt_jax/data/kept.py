"""Lists of the examples that curation keeps, which training reads as a filter on any source.

A list is a compressed npz file with

    description  JSON: format, the pool's size and hash (`data.identity`), the number of kept
                 examples, and how they were chosen
    bits         1 bit per pool example, starting at the highest bit in the first byte; or
    indices      ascending indices, if examples are repeated
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from dinotxt_jax.data.examples import Example, Source
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.files import new_file
from dinotxt_jax.storage.retries import retried

_FORMAT = "dinotxt_jax kept examples 1"
# Bitmap bytes per entry in the cumulative count table.
_BLOCK = 512
# Threads that read captions to compute a pool's identity.
_THREADS = 16


class KeptRows:
    """Sequence of the kept pool indices, ascending; takes 1 bit per pool example if none repeats.

    Args:
        bits: 1 bit per pool example, or None.
        indices: the indices, if `bits` is None because indices are repeated.
    """

    def __init__(
        self, bits: UInt8[np.ndarray, " b"] | None, indices: Int64[np.ndarray, " n"] | None = None
    ) -> None:
        self._bits, self._indices = bits, indices
        if bits is not None:
            padded = np.pad(np.bitwise_count(bits), (0, -len(bits) % _BLOCK))
            self._ends = np.cumsum(padded.reshape(-1, _BLOCK).sum(1, dtype=np.int64))

    def __len__(self) -> int:
        if self._indices is not None:
            return len(self._indices)
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> int:
        if not 0 <= number < len(self):
            raise IndexError(f"example {number} of {len(self)}")
        if self._indices is not None:
            return int(self._indices[number])
        assert self._bits is not None
        block = int(np.searchsorted(self._ends, number, "right"))
        before = int(self._ends[block - 1]) if block else 0
        set_bits = np.flatnonzero(np.unpackbits(self._bits[block * _BLOCK : (block + 1) * _BLOCK]))
        return block * _BLOCK * 8 + int(set_bits[number - before])

    def counts(self, examples: int) -> Int64[np.ndarray, " n"]:
        """Returns how often each pool example is kept."""
        if self._indices is not None:
            return np.bincount(self._indices, minlength=examples)
        assert self._bits is not None
        return np.unpackbits(self._bits)[:examples].astype(np.int64)


class KeptList(NamedTuple):
    """A list's content.

    Attributes:
        rows: the kept indices.
        description: the pool and how the examples were chosen.
    """

    rows: KeptRows
    description: dict[str, Any]

    @property
    def examples(self) -> int:
        """Number of examples in the pool."""
        return int(self.description["pool"]["examples"])


def write_kept(
    path: Address,
    counts: Integer[np.ndarray, " n"],
    pool: Mapping[str, Any],
    origin: Mapping[str, Any],
) -> None:
    """Writes a list.

    Args:
        path: the file to write.
        counts: how often each pool example is kept.
        pool: the pool's `data_identity`.
        origin: how the examples were chosen, as JSON values.
    """
    repeated = bool((counts > 1).any())
    kept = int(counts.sum())
    description = {"format": _FORMAT, "pool": dict(pool), "kept": kept, "origin": dict(origin)}
    arrays = (
        {"indices": np.repeat(np.arange(len(counts)), counts)}
        if repeated
        else {"bits": np.packbits(counts.astype(bool))}
    )
    with new_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, description=np.array(json.dumps(description)), **arrays)


def read_kept(path: Address, setting: str) -> KeptList:
    """Reads a list; `setting` is the settings key that names the file, for messages.

    Raises:
        UserError: the file is missing, damaged or not a list.
    """
    cure = f"write it again with python -m dinotxt_jax.curate, or correct {setting}"
    try:
        content = retried(path.read_bytes)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}, expected a list of examples; {cure}.") from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            description = json.loads(str(arrays["description"]))
            bits, indices = arrays.get("bits"), arrays.get("indices")
        if (bits is None) == (indices is None):
            raise ValueError("expected either bits or indices")
        rows = KeptRows(bits, indices)
        pool = description["pool"]["examples"]
        size = -(-pool // 8) if indices is None else len(rows)
        length = len(rows) if bits is None else len(bits)
        if (description["format"], description["kept"], size) != (_FORMAT, len(rows), length):
            raise ValueError("the description contradicts the content")
        if indices is not None and not _is_ascending(indices, pool):
            raise ValueError("indices are outside the pool or not ascending")
    except (
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        OSError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise UserError(
            f"{path} cannot be read ({error}), expected a list of examples; {cure}."
        ) from error
    return KeptList(rows, description)


def _is_ascending(indices: Int64[np.ndarray, " n"], examples: int) -> bool:
    inside = len(indices) == 0 or (indices[0] >= 0 and indices[-1] < examples)
    return bool(inside and (np.diff(indices) >= 0).all())


class KeptSource:
    """A source's examples that a list keeps.

    Args:
        source: the pool.
        rows: the kept pool indices.
    """

    def __init__(self, source: Source, rows: KeptRows) -> None:
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._rows[index]]

    def captions(self, index: int) -> tuple[str, ...]:
        return self._source.captions(self._rows[index])

    def key(self, index: int) -> str:
        """Returns an example's name in the pool."""
        return self._source.key(self._rows[index])


def kept_examples(source: Source, path: str, setting: str) -> KeptSource:
    """Returns the pool examples that a list keeps.

    Args:
        source: the pool.
        path: the list file.
        setting: the settings key that names the file, for messages.

    Raises:
        UserError: the list cannot be read, keeps no example, or belongs to another pool.
    """
    # Imported late: `identity` imports Grain, which the table of sources must not load.
    from dinotxt_jax.data.identity import data_identity, difference

    kept = read_kept(to_address(path), setting)
    changes = difference(kept.description["pool"], data_identity(source, _THREADS))
    if changes:
        raise UserError(
            f"{path} was made for another pool: {changes}; curate this data again, or correct "
            f"{setting}."
        )
    if not len(kept.rows):
        raise UserError(f"{path} keeps no example, expected at least one; correct {setting}.")
    return KeptSource(source, kept.rows)
