"""Converts checkpoint files to a model directory, one array at a time."""

import collections
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import jax
import numpy as np
from tqdm import tqdm

from dinotxt_jax.errors import UserError
from dinotxt_jax.models.dinotxt import INITIAL_LOGIT_SCALE
from dinotxt_jax.storage.addresses import Address, AddressLike, is_remote, to_output
from dinotxt_jax.storage.checksums import PieceChecksum
from dinotxt_jax.storage.downloads import sha256_of
from dinotxt_jax.storage.model_arrays import nested
from dinotxt_jax.storage.model_directory import (
    ARRAYS,
    FILE,
    Fingerprint,
    ModelDescription,
    SourceCheckpoint,
    new_model_directory,
    write_description,
)
from dinotxt_jax.storage.pieces import Piece, save_in_pieces
from weights_convert import architecture
from weights_convert.architecture import Architecture
from weights_convert.choices import DTYPES, SCALARS
from weights_convert.fetching import display_name, fetch
from weights_convert.layouts.rules import Rule
from weights_convert.matching import LayoutArray, Match, recognise
from weights_convert.messages import listed, quoted
from weights_convert.settings import Settings, completed
from weights_convert.sources import Checkpoint, open_checkpoint
from weights_convert.tokenizer_files import find_tokenizer

_PARTS = ("backbone", "head", "text")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A finished conversion.

    Attributes:
        description: the content of `model.json`.
        matches: each source with its layout.
        note: a sentence about a tokenizer that is missing.
    """

    description: ModelDescription
    matches: tuple[Match, ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class _Array:
    """An array in the model directory.

    Attributes:
        place: path from the component, for example ("backbone", "blocks", "mlp", "fc1", "kernel").
        shape, dtype: as it will be written.
        entries: (file, entry in the layout, index into the row's places), one per layer.
        value: the array, if no file holds it.
    """

    place: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    entries: tuple[tuple[Match, LayoutArray, int], ...] = ()
    value: np.ndarray | None = None


def convert(
    sources: Sequence[Path | str],
    output: AddressLike,
    *,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    preset: str | None = None,
    dtype: str = "float32",
    layout: str | None = None,
    prefix: str | None = None,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Conversion:
    """Converts checkpoint files into a model directory.

    Args:
        sources: one backbone, or all parts of a dino.txt in any order: files, folders that
            `transformers` saved, https:// addresses or hf://ORG/NAME.
        output: the model directory; it appears when it is complete.
        settings: settings that the arrays do not determine.
        preset: name of the architecture that the backbone must have.
        dtype: stored dtype; "bfloat16" rounds to nearest, ties to even.
        layout: layout name for all sources; None recognises it.
        prefix: prefix of all array names in the sources; None recognises it.
        tokenizer: the sentencepiece file of the text transformer; None looks next to the sources.
        overwrite: replace an existing model directory.
        show_progress: show progress bars on standard error.

    Raises:
        UserError: a source cannot be read, has no known layout, has missing, unexpected or
            mis-shaped arrays (all listed in one sentence), contains NaN or infinity, differs from
            the preset, or the output exists.
    """
    output = to_output(output, "--output")
    replace = _check_output(output, overwrite)
    opened = [open_checkpoint(fetch(source), display_name(source)) for source in sources]
    _check_sources_survive(opened, output)
    matches = [recognise(source, layout, prefix) for source in opened]
    _check_components(matches)
    problems = [match.problems for match in matches if match.problems]
    if problems:
        raise UserError("the arrays do not fit: " + "; and ".join(problems) + ".")
    settings = completed(settings, matches)
    inferred = architecture.infer(matches, settings)
    if preset is not None:
        architecture.check_preset(preset, inferred.vision)
    architecture.check_heads(matches, settings, inferred)
    found = find_tokenizer(matches, inferred.text, tokenizer)
    with new_model_directory(output, replace) as folder:
        arrays = _planned(matches, inferred, DTYPES[dtype])
        fingerprint, checksums = _write(folder, arrays, matches, inferred, show_progress)
        description = ModelDescription(
            vision=inferred.vision,
            head=inferred.head,
            text=inferred.text,
            logit_bias=inferred.logit_bias,
            preprocessing=architecture.preprocessing(_backbone(matches), inferred.vision, settings),
            fingerprint=fingerprint,
            checksums=checksums,
            tokenizer=found.spec,
            preset=preset or architecture.presets.find_preset(inferred.vision),
            sources=_described_sources(matches, show_progress),
        )
        found.save(folder)
        write_description(folder, description)
    return Conversion(description, tuple(matches), found.note)


def _backbone(matches: Sequence[Match]) -> Match:
    return next(match for match in matches if "backbone" in match.layout.components)


def _check_output(output: Address, overwrite: bool) -> bool:
    """Returns whether the output holds a directory that may be replaced, that is, deleted."""
    if not output.exists():
        return False
    if output.is_dir() and not any(output.iterdir()):
        return True
    if not (output / FILE).exists():
        raise UserError(f"{output} exists and is not a model directory; choose another --output.")
    if not overwrite:
        raise UserError(f"{output} exists already; choose another --output, or add --overwrite.")
    return True


def _check_sources_survive(opened: Sequence[Checkpoint], output: Address) -> None:
    """Raises `UserError` if replacing the output would delete a source."""
    if is_remote(output):
        return
    folder = output.resolve()
    for source in opened:
        if any(folder in file.resolve().parents for file in source.files):
            raise UserError(
                f"{source.name} is inside {output}, which would be replaced; choose "
                "another --output."
            )


def _check_components(matches: Sequence[Match]) -> None:
    owners: dict[str, str] = {}
    for match in matches:
        for component in match.layout.components:
            if component in owners:
                raise UserError(
                    f"{owners[component]} and {match.name} both hold a {component}; pass one."
                )
            owners[component] = match.name
    components = set(owners) - set(SCALARS)
    headless = any(match.layout.headless for match in matches)
    required = tuple(part for part in _PARTS if part != "head" or not headless)
    if components != {"backbone"} and not components >= set(required):
        lacking = [component for component in required if component not in owners]
        raise UserError(
            f"the sources hold {' and '.join(owners)} but no {' and no '.join(lacking)}; pass a "
            "backbone alone, or all parts of a model together."
        )


def _planned(
    matches: Sequence[Match], inferred: Architecture, dtype: np.dtype
) -> dict[tuple[str, ...], _Array]:
    """Lists every array in the model directory, in fingerprint order."""
    sizes = architecture.axis_sizes(matches, inferred)
    planned: dict[tuple[str, ...], _Array] = {}
    for match in matches:
        for entry in match.entries:
            rule = entry.rule
            stored = DTYPES["float32"] if _keeps_float32(rule) else dtype
            for number, place in enumerate(rule.paths):
                shape = rule.shape(sizes[rule.component], number)
                if rule.stacked:
                    shape = (match.depths[rule.component], *shape)
                array = planned.get(place) or _Array(place, shape, stored)
                planned[place] = dataclasses.replace(
                    array, entries=(*array.entries, (match, entry, number))
                )
        for name, compute in match.layout.computed.items():
            value = np.asarray(compute(inferred.vision), np.float32)
            place = tuple(name.split("/"))
            planned[place] = _Array(place, value.shape, value.dtype, value=value)
    scale = ("logit_scale",)
    if inferred.head is not None and scale not in planned:
        # The release on DINOv2 has no logit scale, and the official code keeps the initial value.
        # Our exports store a trained value in the metadata.
        stored_scales = [_number(match.source.metadata.get("logit_scale", "")) for match in matches]
        scales = [number for number in stored_scales if number is not None]
        value = np.array(scales[0] if scales else INITIAL_LOGIT_SCALE, np.float32)
        planned[scale] = _Array(scale, (), value.dtype, value=value)
    ordered = sorted(planned.values(), key=lambda array: ".".join(array.place))
    return {array.place: array for array in ordered}


def _number(text: str) -> float | None:
    try:
        return float(text) if math.isfinite(float(text)) else None
    except ValueError:
        return None


def _keeps_float32(rule: Rule) -> bool:
    return rule.keeps_float32 or rule.component in SCALARS


def _write(
    folder: Address,
    arrays: Mapping[tuple[str, ...], _Array],
    matches: Sequence[Match],
    inferred: Architecture,
    show_progress: bool,
) -> tuple[str, dict[str, str]]:
    """Writes all arrays, one layer in memory at a time.

    Returns:
        The backbone's fingerprint, and the checksums of all arrays.
    """
    sizes = architecture.axis_sizes(matches, inferred)
    fingerprint, checksums = Fingerprint(), dict[str, str]()
    not_finite: list[str] = []

    def converted(array: _Array) -> Iterator[tuple[int | None, np.ndarray]]:
        """Yields the layers of an array, rounded to the stored dtype."""
        if array.value is not None:
            yield None, array.value
        for match, entry, number in array.entries:
            source_arrays = [match.arrays[key].read() if key else None for key in entry.keys]
            ours = entry.rule.to_ours(source_arrays, sizes[entry.rule.component])[number]
            rounded = round_to(ours, array.dtype)
            if not np.isfinite(rounded).all():
                not_finite.extend(f"{quoted(key)} of {match.name}" for key in entry.present)
            yield entry.layer, rounded

    def pieces() -> Iterator[Piece]:
        """Yields all layers, and adds them to the fingerprint and the checksums."""
        total = sum(max(len(array.entries), 1) for array in arrays.values())
        bar = tqdm(total=total, desc="converting", unit="array", disable=not show_progress)
        with bar:
            for place, array in arrays.items():
                of_backbone = place[0] == "backbone"
                if of_backbone:
                    fingerprint.begin(".".join(place[1:]), array.dtype, array.shape)
                checksum = PieceChecksum()
                for layer, values in converted(array):
                    if of_backbone:
                        fingerprint.add(values)
                    checksum.add(values)
                    yield Piece(place, layer, values)
                    bar.update()
                checksums[".".join(place)] = checksum.hexdigest()

    empty = nested(
        {
            place: jax.ShapeDtypeStruct(array.shape, array.dtype)
            if array.shape
            else next(converted(array))[1]
            for place, array in arrays.items()
        }
    )
    save_in_pieces(folder / ARRAYS, empty, (piece for piece in pieces() if piece.values.shape))
    if not_finite:
        dtypes = ", ".join(sorted({array.dtype.name for array in arrays.values()}))
        problem = listed(f"NaN or infinite numbers, as {dtypes}, in", dict.fromkeys(not_finite))
        raise UserError(f"{problem}; use an intact file.")
    return fingerprint.hexdigest(), checksums


def round_to(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Casts to a floating-point dtype, rounding once, to nearest with ties to even."""
    with np.errstate(over="ignore", invalid="ignore"):
        if array.dtype != np.float64 or dtype != DTYPES["bfloat16"]:
            return array.astype(dtype)
        # numpy casts float64 to bfloat16 through float32, and rounding twice can create a false
        # tie. Rounding to odd first (truncate; if inexact, set the last bit) avoids that.
        narrow = array.astype(np.float32)
        narrow = np.where(np.abs(narrow) > np.abs(array), np.nextafter(narrow, 0), narrow)
        narrow = narrow.astype(np.float32)
        inexact = np.isfinite(array) & (narrow != array)
        return (narrow.view(np.uint32) | inexact).view(np.float32).astype(dtype)


def _described_sources(
    matches: Sequence[Match], show_progress: bool
) -> tuple[SourceCheckpoint, ...]:
    total = sum(file.stat().st_size for match in matches for file in match.source.files)
    bar = tqdm(total=total, desc="sha256", unit="B", unit_scale=True, disable=not show_progress)
    with bar:
        return tuple(_described(match, bar) for match in matches)


def _described(match: Match, bar: tqdm) -> SourceCheckpoint:
    hashes = [sha256_of(file, bar.update) for file in sorted(match.source.files)]
    # Several files get one hash over all their hashes, in name order.
    combined = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode())
    dtypes = {key: match.arrays[key].dtype.name for entry in match.entries for key in entry.present}
    usual = collections.Counter(dtypes.values()).most_common(1)[0][0]
    return SourceCheckpoint(
        file=PurePosixPath(match.name).name,
        sha256=combined if isinstance(combined, str) else combined.hexdigest(),
        layout=match.layout.name,
        dtype=usual,
        other_dtypes={key: dtype for key, dtype in dtypes.items() if dtype != usual},
    )
