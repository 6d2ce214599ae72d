"""Infers the architecture from array shapes in a checkpoint and the user's settings."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dinotxt_jax.config.architecture import (
    ACTIVATIONS,
    HeadConfig,
    TextConfig,
    VisionConfig,
    descriptor_dim,
    swiglu_hidden_dim,
)
from dinotxt_jax.errors import UserError
from dinotxt_jax.models import presets
from dinotxt_jax.storage.model_directory import Preprocessing
from weights_convert.matching import Match
from weights_convert.settings import Settings, settings_beside

_HEAD_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The architecture of every component in the sources."""

    vision: VisionConfig
    head: HeadConfig | None = None
    text: TextConfig | None = None
    logit_bias: bool = False


def infer(matches: Sequence[Match], settings: Settings) -> Architecture:
    """Infers the architecture from sources that fit their layouts.

    Args:
        matches: a backbone alone, or all parts of a model.
        settings: settings that the arrays do not determine.

    Raises:
        UserError: a number of heads that does not divide the width, a position table that is
            not square, components with different widths, or arrays that contradict a config file
            next to them.
    """
    for match in matches:
        _check_sizes(match)
    by_component = {part: match for match in matches for part in match.layout.components}
    vision = _vision(by_component["backbone"], settings)
    if "text" not in by_component:
        return Architecture(vision)
    text_match = by_component["text"]
    head = _head(by_component, vision)
    text = _text(text_match, settings)
    token_dim = head.projection or vision.dim
    expected = descriptor_dim(token_dim, head.pooling)
    if text.embed_dim != expected:
        descriptor = f"2 x {token_dim}" if expected == 2 * token_dim else f"{token_dim}"
        raise UserError(
            f"{text_match.name} makes text features of {text.embed_dim} dimensions, but the image "
            f"descriptor has {descriptor}; take the files that were released together."
        )
    return Architecture(vision, head, text, "logit_bias" in by_component)


def _check_sizes(match: Match) -> None:
    """Raises `UserError` if a config file next to the arrays describes other arrays."""
    for (component, axis), size in settings_beside(match).get("sizes", {}).items():
        actual = match.sizes.get(component, {}).get(axis, size)
        if actual != size:
            raise UserError(
                f"{match.name} has {component} arrays with {_AXIS_NAMES[axis]} {actual}, but the "
                f"config file next to it says {size}; take the files that belong together."
            )


_AXIS_NAMES = {
    "d": "width",
    "f": "MLP hidden width",
    "p": "patch side",
    "v": "vocabulary size",
    "t": "context length",
}


def _head(by_component: Mapping[str, Match], vision: VisionConfig) -> HeadConfig:
    """Returns the head: blocks (dino.txt), a projection (CLIP), or nothing (SigLIP, TIPS)."""
    match = by_component.get("head", by_component["text"])
    if match.layout.headless:
        return HeadConfig(
            num_blocks=0,
            num_heads=vision.num_heads,
            mlp_hidden_dim=swiglu_hidden_dim(vision.dim),
            pooling="none",
            projection=match.sizes["head"]["e"] if "head" in by_component else 0,
        )
    head_dim = match.sizes["head"]["d"]
    if head_dim != vision.dim:
        raise UserError(
            f"{match.name} is a head for backbones of width {head_dim}, but "
            f"{by_component['backbone'].name} has width {vision.dim}; take the pair that was "
            "released together."
        )
    return HeadConfig(
        num_blocks=match.depths["head"],
        num_heads=vision.num_heads,
        mlp_hidden_dim=match.sizes["head"]["f"],
    )


def _places(match: Match, component: str) -> set[str]:
    """Returns the places of the component's arrays in our tree, without the component's name."""
    rules = [entry.rule for entry in match.entries if entry.rule.component == component]
    return {place.removeprefix(f"{component}/") for rule in rules for place in rule.places}


def _depth(match: Match, component: str) -> int:
    """Returns the number of blocks; scanned files have it as an axis."""
    return match.depths[component] or match.sizes[component].get("l", 0)


def _vision(match: Match, settings: Settings) -> VisionConfig:
    sizes, places = match.sizes["backbone"], _places(match, "backbone")
    features = {entry.rule.feature for entry in match.entries}
    if sizes["p"] != sizes["q"]:
        raise UserError(
            f"{match.name} has patches of {sizes['p']}x{sizes['q']} pixels; only square ones work."
        )
    shared: dict[str, Any] = dict(match.layout.vision)
    if "position_embedding" in places:
        shared["position_grid"] = _position_grid(match, shared.get("class_position", True))
    if "rope_periods" in places:
        shared["rope_theta"] = settings.rope_theta or VisionConfig.rope_theta
    for name in ("layer_norm_epsilon", "rope_theta", "position_interpolation"):
        if getattr(settings, name) is not None:
            shared[name] = getattr(settings, name)
    mlp = "swiglu" if "blocks/mlp/gate/kernel" in places else "mlp"
    shared["activation"] = _activation(match, mlp, settings)
    return VisionConfig(
        patch_size=sizes["p"],
        dim=sizes["d"],
        depth=_depth(match, "backbone"),
        num_heads=_vision_heads(match, settings),
        mlp=mlp,
        mlp_hidden_dim=sizes["f"],
        num_registers=sizes.get("r", 1) if "register_tokens" in places else 0,
        layer_scale="blocks/layer_scale1/scale" in places,
        qkv_bias="blocks/attention/qkv/bias" in places,
        qkv_bias_mask="bias_mask" in features,
        mask_token="mask_token" in places,
        local_class_norm="local_class_norm" in features,
        **shared,
    )


def _activation(match: Match, mlp: str, settings: Settings) -> str:
    """Returns the activation function of the MLPs; gated ones always have silu."""
    layout = match.layout
    default = str(layout.vision.get("activation", VisionConfig.activation))
    activation = settings.activation or default
    if mlp == "mlp":
        expected, is_possible = " or ".join(ACTIVATIONS), activation in ACTIVATIONS
    else:
        follows = layout.gate_follows_config and settings.activation is not None
        expected, is_possible = "silu", activation == "silu" or not follows
        activation = default
    if not is_possible:
        raise UserError(
            f"{match.name} is used with hidden_act={settings.activation}, but such a backbone is "
            f"computed with {expected} here; it cannot be converted."
        )
    return activation


def _position_grid(match: Match, class_position: bool) -> int:
    sizes = match.sizes["backbone"]
    if "n" not in sizes:  # the file has an axis for the rows and one for the columns
        if sizes["g"] != sizes["j"]:
            raise UserError(
                f"{match.name} has {sizes['g']}x{sizes['j']} positions; only square position "
                "tables can be converted."
            )
        return sizes["g"]
    positions = sizes["n"]
    patches = positions - class_position
    grid = math.isqrt(max(patches, 0))
    if grid**2 != patches or not grid:
        first = "one for the class token and " if class_position else ""
        raise UserError(
            f"{match.name} has {positions} positions, expected {first}a square number for the "
            "patches; only square position tables can be converted."
        )
    return grid


def _vision_heads(match: Match, settings: Settings) -> int:
    """Returns the number of heads: from stored rotary periods, the settings, or the width.

    The number of stored periods is a quarter of a head's width.
    """
    sizes = match.sizes["backbone"]
    if "o" not in sizes:
        heads = _heads(match, "backbone", settings.num_heads, "num_heads")
        if match.layout.vision.get("positions") == "rope" and sizes["d"] // heads % 4:
            raise UserError(
                f"{match.name} has {heads} heads of width {sizes['d'] // heads}"
                f"{_origin(match, 'num_heads', heads)}, but rotary positions need a multiple of 4; "
                "give the right number with --set num_heads=NUMBER."
            )
        return heads
    heads, rest = divmod(sizes["d"], 4 * sizes["o"])
    meaning = (
        f"{match.name} has {sizes['o']} rotary periods, which means heads of width "
        f"{4 * sizes['o']} in a backbone of width {sizes['d']}"
    )
    if rest:
        raise UserError(f"{meaning}, expected a multiple; use an intact file.")
    if settings.num_heads not in (None, heads):
        raise UserError(
            f"{meaning}, but num_heads={settings.num_heads}"
            f"{_origin(match, 'num_heads', settings.num_heads)} is given; correct that number, or "
            "use an intact file."
        )
    return heads


def _text(match: Match, settings: Settings) -> TextConfig:
    sizes, places = match.sizes["text"], _places(match, "text")
    fields: dict[str, Any] = {**match.layout.text, **settings_beside(match).get("text", {})}
    if "t" in sizes:
        fields["context_length"] = sizes["t"]
    if settings.end_id is not None:
        fields["end_id"] = settings.end_id
    if settings.text_layer_norm_epsilon is not None:
        fields["layer_norm_epsilon"] = settings.text_layer_norm_epsilon
    # A layout that asks for an activation function asks for that of both transformers.
    shared = settings.activation if "activation" in match.layout.asked else None
    if activation := settings.text_activation or shared:
        fields["activation"] = activation
    if "projection/kernel" not in places:
        fields["projection"] = "none"
    return TextConfig(
        vocabulary_size=sizes["v"],
        width=sizes["d"],
        depth=_depth(match, "text"),
        num_heads=_heads(match, "text", settings.text_num_heads, "text_num_heads"),
        mlp_hidden_dim=sizes["f"],
        embed_dim=sizes.get("e", sizes["d"]),
        **fields,
    )


def _known_heads(match: Match, component: str) -> int | None:
    """Returns the number of heads that the arrays or the layout's released sizes determine."""
    sizes = match.sizes[component]
    layout = match.layout
    released = layout.text_heads if component == "text" else layout.vision_heads
    return sizes.get("h", released.get((sizes["d"], _depth(match, component))))


def _heads(match: Match, component: str, explicit: int | None, key: str) -> int:
    """Returns the number of heads: as stored or given, as released, or width / 64."""
    width, known = match.sizes[component]["d"], _known_heads(match, component)
    stored = match.sizes[component].get("h")
    if None not in (explicit, stored) and explicit != stored:
        raise UserError(
            f"{match.name} has arrays of {stored} heads, but {key}={explicit}"
            f"{_origin(match, key, explicit)} is given; correct that number."
        )
    heads = explicit or known
    if heads is None and width % _HEAD_WIDTH:
        raise UserError(
            f"{match.name} has width {width}, which is not a multiple of {_HEAD_WIDTH}, so that "
            f"the number of heads cannot be guessed; give it with --set {key}=NUMBER."
        )
    heads = heads or width // _HEAD_WIDTH
    if width % heads:
        raise UserError(
            f"{key}={heads}{_origin(match, key, heads)} does not divide the width {width} of "
            f"{match.name}; give a number that does with --set {key}=NUMBER."
        )
    return heads


def _origin(match: Match, key: str, value: int | None) -> str:
    """Says, for a sentence, where a number comes from."""
    if settings_beside(match).get(key) == value:
        return " (from the config file next to it)"
    return " (from --set)"


def axis_sizes(matches: Iterable[Match], architecture: Architecture) -> dict[str, dict[str, int]]:
    """Returns component -> axis name -> size, including the attention axes h (heads) and k."""
    parts = {"backbone": architecture.vision, "head": architecture.head, "text": architecture.text}
    complete: dict[str, dict[str, int]] = {}
    for match in matches:
        for component, sizes in match.sizes.items():
            complete[component] = dict(sizes)
            if (part := parts.get(component)) is not None:
                complete[component] |= {"h": part.num_heads, "k": sizes["d"] // part.num_heads}
    return complete


def check_heads(matches: Sequence[Match], settings: Settings, architecture: Architecture) -> None:
    """Raises `UserError` if a number of heads is a guess: wrong heads give wrong outputs.

    A number is known if the arrays, a file or the user state it, or if the guess gives a released
    model.
    """
    vision, text = architecture.vision, architecture.text
    match = _with_component(matches, "backbone")
    is_known = settings.num_heads is not None or "o" in match.sizes["backbone"]
    is_known = is_known or _known_heads(match, "backbone") is not None
    if not is_known and presets.find_preset(vision) is None:
        raise _unknown_heads(match, vision.num_heads, "num_heads")
    if text is None or settings.text_num_heads is not None:
        return
    match, released = _with_component(matches, "text"), TextConfig()
    is_known = _known_heads(match, "text") is not None
    if not is_known and (text.width, text.depth) != (released.width, released.depth):
        raise _unknown_heads(match, text.num_heads, "text_num_heads")


def _with_component(matches: Sequence[Match], component: str) -> Match:
    return next(match for match in matches if component in match.layout.components)


def _unknown_heads(match: Match, guess: int, key: str) -> UserError:
    return UserError(
        f"{match.name} does not say how many attention heads it has, and it is no known model, "
        f"for which {guess} heads of width {_HEAD_WIDTH} could be assumed; give "
        f"their number with --set {key}=NUMBER."
    )


def check_preset(name: str, vision: VisionConfig) -> None:
    """Raises `UserError` unless a backbone has the preset's architecture."""
    if name not in presets.PRESETS:
        raise UserError(f"--preset={name} is not known; known are: {', '.join(presets.PRESETS)}.")
    differences = presets.differences(vision, name)
    if differences:
        raise UserError(
            f"the backbone is not a {name}: {', '.join(differences)}; correct --preset, or omit it "
            "to convert what the file holds."
        )


def preprocessing(match: Match, vision: VisionConfig, settings: Settings) -> Preprocessing:
    """Returns the preprocessing: the layout's defaults, a config file's, and the user's settings.

    A layout without a size means images as large as the stored position grid.
    """
    side = vision.position_grid * vision.patch_size
    explicit = {
        field.name: value
        for field in dataclasses.fields(Preprocessing)
        if (value := getattr(settings, field.name, None)) is not None
    }
    return Preprocessing(**{"resize": side, "crop": side, **match.layout.preprocessing, **explicit})
