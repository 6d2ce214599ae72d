"""Checkpoint files to a model directory: recognise, check, convert one array at a time, write."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath
from tqdm import tqdm

from dinotxt_jax.downloads import sha256_of
from dinotxt_jax.errors import UserError
from dinotxt_jax.models.dinotxt import INITIAL_LOGIT_SCALE
from dinotxt_jax.models.directory import (
    ModelDescription,
    Source,
    fingerprint,
    write_model_directory,
)
from weights_convert import architecture
from weights_convert.architecture import Architecture, Settings
from weights_convert.matching import Match, recognise
from weights_convert.messages import listed, quoted
from weights_convert.sources import open_source

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_PARTS = ("backbone", "head", "text")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        description: what `model.json` says.
        matches: each source with its layout.
    """

    description: ModelDescription
    matches: tuple[Match, ...]


@dataclasses.dataclass(frozen=True)
class _StoredArray:
    """An array that is written to a file piece by piece, and mapped from it when complete.

    The pieces are written, not mapped: a full disk is then an error and not the end of the process.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def write(self, piece: np.ndarray, index: int) -> None:
        with self.file.open("r+b" if self.file.exists() else "w+b") as file:
            file.seek(index * piece.nbytes)
            np.ascontiguousarray(piece).tofile(file)

    def open(self) -> np.ndarray:
        return np.memmap(self.file, self.dtype, mode="r", shape=self.shape)


def convert(
    sources: Sequence[Path],
    output: epath.PathLike,
    *,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    preset: str | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
    show_progress: bool = True,
) -> Conversion:
    """Converts checkpoint files into a model directory.

    Args:
        sources: one backbone file, or the three files of a dino.txt, in any order.
        output: the model directory; it appears when it is complete.
        settings: what the arrays cannot tell.
        preset: name of the architecture that the backbone must have.
        dtype: what arrays are stored as; "bfloat16" rounds to nearest, ties to even.
        overwrite: replace a model directory of that name.
        show_progress: progress bars on standard error.

    Raises:
        UserError: a source cannot be read, is of no known layout, lacks arrays or has foreign or
            mis-shaped ones (all of them in one sentence), holds NaN or infinity, is not the
            preset, or the output exists.
    """
    output = epath.Path(output)
    replace = _check_output(output, overwrite)
    matches = [recognise(path, open_source(path)) for path in sources]
    _check_components(matches)
    problems = [match.problems for match in matches if match.problems]
    if problems:
        raise UserError("the arrays do not fit: " + "; and ".join(problems) + ".")
    inferred = architecture.infer(matches, settings)
    if preset is not None:
        architecture.check_preset(preset, inferred.vision)
    with _scratch_folder(output) as scratch:
        arrays = _convert_arrays(matches, inferred, DTYPES[dtype], scratch, show_progress)
        description = _describe(matches, inferred, settings, preset, arrays, show_progress)
        write_model_directory(output, description, arrays, overwrite=replace)
    return Conversion(description, tuple(matches))


def _check_output(output: epath.Path, overwrite: bool) -> bool:
    """Whether there is something at the output that may be replaced, which means deleted."""
    if not output.exists():
        return False
    if output.is_dir() and not any(output.iterdir()):
        return True
    if not (output / "model.json").exists():
        raise UserError(f"{output} exists and is not a model directory; choose another --output.")
    if not overwrite:
        raise UserError(f"{output} exists already; choose another --output, or add --overwrite.")
    return True


def _check_components(matches: Sequence[Match]) -> None:
    owners: dict[str, Path] = {}
    for match in matches:
        for component in match.layout.components:
            if component in owners:
                raise UserError(
                    f"{owners[component]} and {match.path} both hold a {component}; pass one."
                )
            owners[component] = match.path
    if set(owners) not in ({"backbone"}, set(_PARTS)):
        lacking = [component for component in _PARTS if component not in owners]
        raise UserError(
            f"the sources hold {' and '.join(owners)} but no {' and no '.join(lacking)}; pass a "
            "backbone alone, or backbone, vision head and text encoder together."
        )


@contextlib.contextmanager
def _scratch_folder(output: epath.Path) -> Iterator[Path]:
    """A temporary folder on the file system of the output, or, for a bucket, on this machine's."""
    beside = None
    if "://" not in str(output):
        beside = next(parent for parent in Path(output).absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".weights_convert-", dir=beside) as folder:
        yield Path(folder)


def _convert_arrays(
    matches: Sequence[Match],
    inferred: Architecture,
    dtype: np.dtype,
    scratch: Path,
    show_progress: bool,
) -> dict[str, Any]:
    """The tree of our arrays, as files in the scratch folder mapped into memory.

    Blocks are stacked, so that an array of ours is made of many of the file's. Writing each into
    its place on disk keeps one array in memory, whatever the size of the model.
    """
    sizes = architecture.axis_sizes(matches, inferred)
    stored: dict[str, _StoredArray] = {}
    not_finite: list[str] = []
    work = [(match, entry) for match in matches for entry in match.entries]
    for match, entry in tqdm(work, "converting", unit="array", disable=not show_progress):
        rule = entry.rule
        axes = sizes[rule.component]
        pieces = rule.to_ours(match.arrays[entry.key].read(), axes)
        for place, piece in zip(rule.places, pieces, strict=True):
            if place not in stored:
                depth = (match.depths[rule.component],) if rule.stacked else ()
                stored[place] = _StoredArray(
                    scratch / str(len(stored)), depth + rule.shape(axes), dtype
                )
            rounded = round_to(piece, dtype)
            if not np.isfinite(rounded).all():
                not_finite.append(f"{quoted(entry.key)} of {match.path}")
            stored[place].write(rounded, entry.layer or 0)
    if not_finite:
        found = listed(f"NaN or infinite numbers, as {dtype.name}, in", dict.fromkeys(not_finite))
        raise UserError(f"{found}; use an intact file.")
    tree = _nested({place: array.open() for place, array in stored.items()})
    if "head" in tree:
        # The release on DINOv2 does not hold it; the official code leaves it as initialised.
        tree["logit_scale"] = np.array(INITIAL_LOGIT_SCALE, np.float32)
    return tree


def round_to(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array in another floating-point type, rounded once, to nearest with ties to even."""
    with np.errstate(over="ignore", invalid="ignore"):
        if array.dtype != np.float64 or dtype != DTYPES["bfloat16"]:
            return array.astype(dtype)
        # float64 goes to bfloat16 by way of float32, and rounding twice can turn a number into a
        # tie. Rounding to odd first (truncate; if inexact, set the last bit) cannot.
        narrow = array.astype(np.float32)
        narrow = np.where(np.abs(narrow) > np.abs(array), np.nextafter(narrow, 0), narrow)
        narrow = narrow.astype(np.float32)
        inexact = np.isfinite(array) & (narrow != array)
        return (narrow.view(np.uint32) | inexact).view(np.float32).astype(dtype)


def _nested(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for place, array in flat.items():
        *folders, name = place.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[name] = array
    return tree


def _describe(
    matches: Sequence[Match],
    inferred: Architecture,
    settings: Settings,
    preset: str | None,
    arrays: Mapping[str, Any],
    show_progress: bool,
) -> ModelDescription:
    backbone = next(match for match in matches if "backbone" in match.layout.components)
    total = sum(match.path.stat().st_size for match in matches)
    bar = tqdm(total=total, desc="sha256", unit="B", unit_scale=True, disable=not show_progress)
    with bar:
        sources = tuple(
            Source(match.path.name, sha256_of(match.path, bar.update)) for match in matches
        )
    return ModelDescription(
        vision=inferred.vision,
        head=inferred.head,
        text=inferred.text,
        preprocessing=architecture.preprocessing(backbone.layout.preprocessing, settings),
        fingerprint=fingerprint(arrays["backbone"]),
        tokenizer=architecture.tokenizer(inferred.text),
        preset=preset or architecture.find_preset(inferred.vision),
        sources=sources,
    )
