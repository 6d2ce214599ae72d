"""Describes a model directory or a checkpoint in words, without loading arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from dinotxt_jax.models import presets
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.model_arrays import stored_arrays
from dinotxt_jax.storage.model_directory import (
    FILE,
    ModelDescription,
    Preprocessing,
    read_description,
)
from weights_convert import architecture
from weights_convert.architecture import Architecture
from weights_convert.fetching import display_name, fetch
from weights_convert.matching import recognise
from weights_convert.messages import quoted
from weights_convert.settings import Settings, completed
from weights_convert.sources import open_checkpoint


def describe(
    path: str, settings: Settings, layout: str | None = None, prefix: str | None = None
) -> Iterator[str]:
    """Yields lines about a model directory or a conversion source.

    Args:
        path: a model directory, or a source as for `convert`.
        settings, layout, prefix: as for `convert`, for a source.

    Raises:
        UserError: the path is neither.
    """
    downloaded = path.startswith(("hf://", "http://", "https://"))
    if not downloaded and (to_address(path) / FILE).exists():
        yield from _model_directory(to_address(path))
    else:
        yield from _source(path, settings, layout, prefix)


def _model_directory(path: Address) -> Iterator[str]:
    description = read_description(path)
    yield f"{path}: model directory"
    for source in description.sources:
        kind = f", {source.layout}, {source.dtype}" if source.layout else ""
        yield f"made from: {source.file}{kind}, sha256 {source.sha256}"
    yield from _architecture(Architecture(description.vision, description.head, description.text))
    counts: dict[str, int] = {}
    dtypes: dict[str, None] = {}
    for place, array in stored_arrays(path, description).items():
        counts[place[0]] = counts.get(place[0], 0) + math.prod(array.shape)
        dtypes[array.dtype.name] = None
    yield from _counts(counts)
    yield f"stored as: {', '.join(dtypes)}"
    if description.backbone_path is not None:
        yield f"backbone: in {description.backbone_path}"
    yield f"fingerprint of the backbone: {description.fingerprint}"
    yield from _preprocessing(description.preprocessing)
    yield from _tokenizer(description)


def _tokenizer(description: ModelDescription) -> Iterator[str]:
    spec = description.tokenizer
    if spec is not None:
        yield (
            f"tokenizer: {spec['kind']}, {spec['vocabulary_size']} ids, rows of "
            f"{spec['context_length']}"
        )
    elif description.text is not None:
        yield "tokenizer: none is known for this vocabulary"


def _source(path: str, settings: Settings, layout: str | None, prefix: str | None) -> Iterator[str]:
    match = recognise(open_checkpoint(fetch(path), display_name(path)), layout, prefix)
    yield f"{match.name}: {match.layout.title} ({match.layout.name})"
    if match.prefix:
        yield f"found under: {quoted(match.prefix)}"
    if match.ignored:
        yield f"arrays to be skipped: {len(match.ignored)}"
    if match.problems:
        yield f"it cannot be converted: {match.problems}"
        return
    counts: dict[str, int] = {}
    dtypes: dict[str, None] = {}
    for entry in match.entries:
        for key in entry.present:
            array = match.arrays[key]
            component = entry.rule.component
            counts[component] = counts.get(component, 0) + math.prod(array.shape)
            dtypes[array.dtype.name] = None
    settings = completed(settings, [match])
    if "backbone" in match.layout.components:
        yield from _architecture(architecture.infer([match], settings))
    else:
        sizes = {name: dict(axes) for name, axes in match.sizes.items() if axes}
        yield f"sizes: {sizes}, blocks: {dict(match.depths)}"
    yield from _counts(counts)
    yield f"stored as: {', '.join(dtypes)}"
    yield "fingerprint of the backbone: available after conversion"
    if "backbone" in match.layout.components:
        vision = architecture.infer([match], settings).vision
        yield from _preprocessing(architecture.preprocessing(match, vision, settings))


def _architecture(whole: Architecture) -> Iterator[str]:
    preset = presets.find_preset(whole.vision)
    yield f"architecture: {preset or 'has no name'}"
    for name, part in (("backbone", whole.vision), ("head", whole.head), ("text", whole.text)):
        if part is not None:
            values = dataclasses.asdict(part)
            yield f"  {name}: " + ", ".join(f"{key} {value}" for key, value in values.items())


def _counts(counts: Mapping[str, int]) -> Iterator[str]:
    total = sum(counts.values())
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count > 1)
    yield f"numbers: {total:,} ({parts})"


def _preprocessing(images: Preprocessing) -> Iterator[str]:
    yield f"images: mean {images.mean}, std {images.std}, {images.described}"
