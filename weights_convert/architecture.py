"""From the shapes of a checkpoint's arrays to the architecture, and what only the user can say."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dinotxt_jax.errors import UserError
from dinotxt_jax.models.dinotxt import HeadConfig
from dinotxt_jax.models.directory import Preprocessing
from dinotxt_jax.models.presets import PRESETS
from dinotxt_jax.models.text import TextConfig
from dinotxt_jax.models.vit import VisionConfig
from weights_convert.matching import Match

_HEAD_WIDTH = 64
_CLIP_VOCABULARY_SIZE = 49_408


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the arrays of a checkpoint cannot tell; None takes the default.

    Attributes:
        num_heads: attention heads of backbone and vision head; default width / 64.
        text_num_heads: attention heads of the text transformer; default width / 64.
        mean, std: of the pixels that the backbone was trained on, in [0, 1] per channel.
        resize, crop: short side, then side of the center crop, pixels.
    """

    num_heads: int | None = None
    text_num_heads: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: int | None = None
    crop: int | None = None


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The configuration of every component that the sources hold."""

    vision: VisionConfig
    head: HeadConfig | None = None
    text: TextConfig | None = None


def parse_settings(pairs: Iterable[str]) -> Settings:
    """Reads `--set KEY=VALUE` arguments.

    Raises:
        UserError: an unknown key, or a value that is not of its kind.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key in ("mean", "std"):
            values[key] = _three_numbers(key, value)
        elif key in {field.name for field in dataclasses.fields(Settings)}:
            if not (value.isascii() and value.isdigit() and 0 < int(value[:9]) == int(value)):
                raise UserError(f"--set {key} takes a positive whole number, not {value!r}.")
            values[key] = int(value)
        else:
            known = ", ".join(field.name for field in dataclasses.fields(Settings))
            raise UserError(f"--set {pair!r} is not known; give KEY=VALUE with a KEY of {known}.")
    return Settings(**values)


def _three_numbers(key: str, value: str) -> tuple[float, float, float]:
    try:
        first, second, third = (float(part) for part in value.split(","))
    except ValueError:
        first = second = third = math.nan
    if not all(map(math.isfinite, (first, second, third))) or min(first, second, third) < 0:
        raise UserError(f"--set {key} takes three numbers like 0.5,0.5,0.5, not {value!r}.")
    if key == "std" and min(first, second, third) == 0:
        raise UserError(f"--set std takes three numbers above zero, not {value!r}.")
    return first, second, third


def infer(matches: Sequence[Match], settings: Settings) -> Architecture:
    """The architecture of a model whose sources fit their layouts.

    Args:
        matches: of one backbone, or of a backbone, a vision head and a text encoder.
        settings: what the arrays cannot tell.

    Raises:
        UserError: a number of heads that does not divide the width, a table of positions that is
            not square, or components of different widths.
    """
    by_component = {part: match for match in matches for part in match.layout.components}
    vision = _vision(by_component["backbone"], settings)
    if len(by_component) == 1:
        return Architecture(vision)
    head_match, text_match = by_component["head"], by_component["text"]
    head_dim = head_match.sizes["head"]["d"]
    if head_dim != vision.dim:
        raise UserError(
            f"{head_match.path} is a head for backbones of width {head_dim}, but "
            f"{by_component['backbone'].path} has width {vision.dim}; take the pair that was "
            "released together."
        )
    text = _text(text_match, settings)
    if text.embed_dim != 2 * vision.dim:
        raise UserError(
            f"{text_match.path} makes text features of {text.embed_dim} dimensions, but the image "
            f"descriptor has 2 x {vision.dim}; take the files that were released together."
        )
    head = HeadConfig(
        num_blocks=head_match.depths["head"],
        num_heads=vision.num_heads,
        mlp_hidden_dim=head_match.sizes["head"]["f"],
    )
    return Architecture(vision, head, text)


def _vision(match: Match, settings: Settings) -> VisionConfig:
    sizes = match.sizes["backbone"]
    features = {entry.rule.feature for entry in match.entries}
    places = {place for entry in match.entries for place in entry.rule.places}
    if sizes["p"] != sizes["q"]:
        raise UserError(
            f"{match.path} has patches of {sizes['p']}x{sizes['q']} pixels; only square ones work."
        )
    grid = math.isqrt(sizes["n"] - 1) if sizes["n"] > 1 else 0
    if 1 + grid**2 != sizes["n"] or not grid:
        raise UserError(
            f"{match.path} has {sizes['n']} positions, expected one for the class token and a "
            "square number for the patches; only square position tables can be converted."
        )
    registers = sizes["r"] if "registers" in features else 0
    offset = match.layout.offset_positions and not registers
    return VisionConfig(
        patch_size=sizes["p"],
        dim=sizes["d"],
        depth=match.depths["backbone"],
        num_heads=_heads(match, sizes["d"], settings.num_heads, "num_heads"),
        mlp="swiglu" if "backbone/blocks/mlp/gate/kernel" in places else "mlp",
        mlp_hidden_dim=sizes["f"],
        num_registers=registers,
        position_grid=grid,
        position_interpolation="offset" if offset else "antialias",
        layer_scale="backbone/blocks/layer_scale1/scale" in places,
        qkv_bias="qkv_bias" in features,
        mask_token="mask_token" in features,
    )


def _text(match: Match, settings: Settings) -> TextConfig:
    sizes = match.sizes["text"]
    return TextConfig(
        vocabulary_size=sizes["v"],
        context_length=sizes["t"],
        width=sizes["d"],
        depth=match.depths["text"],
        num_heads=_heads(match, sizes["d"], settings.text_num_heads, "text_num_heads"),
        mlp_hidden_dim=sizes["f"],
        embed_dim=sizes["e"],
    )


def _heads(match: Match, width: int, given: int | None, key: str) -> int:
    """The shape of an attention projection is the same for every number of heads."""
    if given is None and width % _HEAD_WIDTH:
        raise UserError(
            f"{match.path} has width {width}, which is not a multiple of {_HEAD_WIDTH}, so that "
            f"the number of heads cannot be guessed; give it with --set {key}=NUMBER."
        )
    heads = width // _HEAD_WIDTH if given is None else given
    if width % heads:
        raise UserError(
            f"--set {key}={heads} does not divide the width {width} of {match.path}; give a "
            "number that does."
        )
    return heads


def axis_sizes(matches: Iterable[Match], architecture: Architecture) -> dict[str, dict[str, int]]:
    """Component -> axis name -> size, with the heads' axes h and k filled in."""
    heads = {
        "backbone": architecture.vision.num_heads,
        "head": architecture.head.num_heads if architecture.head else 1,
        "text": architecture.text.num_heads if architecture.text else 1,
    }
    return {
        component: dict(sizes, h=heads[component], k=sizes["d"] // heads[component])
        for match in matches
        for component, sizes in match.sizes.items()
    }


def check_preset(name: str, vision: VisionConfig) -> None:
    """Raises `UserError` unless a backbone has the architecture of that name."""
    if name not in PRESETS:
        raise UserError(f"--preset={name} is not known; known are: {', '.join(PRESETS)}.")
    expected = PRESETS[name]
    differences = [
        f"{field.name} is {getattr(vision, field.name)} instead of {getattr(expected, field.name)}"
        for field in dataclasses.fields(VisionConfig)
        if field.name != "mask_token"
        and getattr(vision, field.name) != getattr(expected, field.name)
    ]
    if differences:
        raise UserError(
            f"the backbone is not a {name}: {', '.join(differences)}; correct --preset, or leave "
            "it out to convert what the file holds."
        )


def find_preset(vision: VisionConfig) -> str | None:
    """The name of a backbone's architecture, if it has one."""
    return next((name for name, preset in PRESETS.items() if preset == vision), None)


def preprocessing(defaults: Mapping[str, Any], settings: Settings) -> Preprocessing:
    """How images are prepared: as is usual for the layout, and as the user says."""
    given = {
        field.name: value
        for field in dataclasses.fields(Preprocessing)
        if (value := getattr(settings, field.name)) is not None
    }
    return Preprocessing(**{**defaults, **given})


def tokenizer(text: TextConfig | None) -> dict[str, Any] | None:
    """The tokenizer of a text encoder: CLIP's, where the vocabulary has its size."""
    if text is None or text.vocabulary_size != _CLIP_VOCABULARY_SIZE:
        return None
    return {
        "kind": "clip",
        "context_length": text.context_length,
        "vocabulary_size": text.vocabulary_size,
    }
