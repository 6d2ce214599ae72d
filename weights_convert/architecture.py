"""Infers the architecture from array shapes in a checkpoint and the user's settings."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from dinotxt_jax.config.architecture import HeadConfig, TextConfig, VisionConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.models import presets
from dinotxt_jax.storage.model_directory import Preprocessing
from weights_convert.layouts.rules import Layout
from weights_convert.matching import Match
from weights_convert.settings import Settings, settings_beside

_HEAD_WIDTH = 64
_CLIP_VOCABULARY_SIZE = 49_408


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The architecture of every component in the sources."""

    vision: VisionConfig
    head: HeadConfig | None = None
    text: TextConfig | None = None


def infer(matches: Sequence[Match], settings: Settings) -> Architecture:
    """Infers the architecture from sources that fit their layouts.

    Args:
        matches: a backbone alone, or all parts of a dino.txt.
        settings: settings that the arrays do not determine.

    Raises:
        UserError: a number of heads that does not divide the width, a position table that is
            not square, or components with different widths.
    """
    by_component = {part: match for match in matches for part in match.layout.components}
    vision = _vision(by_component["backbone"], settings)
    if "head" not in by_component:
        return Architecture(vision)
    head_match, text_match = by_component["head"], by_component["text"]
    head_dim = head_match.sizes["head"]["d"]
    if head_dim != vision.dim:
        raise UserError(
            f"{head_match.name} is a head for backbones of width {head_dim}, but "
            f"{by_component['backbone'].name} has width {vision.dim}; take the pair that was "
            "released together."
        )
    text = _text(text_match, settings)
    if text.embed_dim != 2 * vision.dim:
        raise UserError(
            f"{text_match.name} makes text features of {text.embed_dim} dimensions, but the image "
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
    rules = [entry.rule for entry in match.entries if entry.rule.component == "backbone"]
    features = {rule.feature for rule in rules}
    places = {place.removeprefix("backbone/") for rule in rules for place in rule.places}
    if sizes["p"] != sizes["q"]:
        raise UserError(
            f"{match.name} has patches of {sizes['p']}x{sizes['q']} pixels; only square ones work."
        )
    mlp = "swiglu" if "blocks/mlp/gate/kernel" in places else "mlp"
    _check_activation(match, mlp)
    shared: dict[str, Any] = dict(match.layout.vision)
    if "position_embedding" in places:
        shared["position_grid"] = _position_grid(match, shared.get("class_position", True))
    if "rope_periods" in places:
        shared["rope_theta"] = settings.rope_theta or VisionConfig.rope_theta
    for name in ("layer_norm_epsilon", "rope_theta", "position_interpolation"):
        if getattr(settings, name) is not None:
            shared[name] = getattr(settings, name)
    return VisionConfig(
        patch_size=sizes["p"],
        dim=sizes["d"],
        depth=match.depths["backbone"],
        num_heads=_vision_heads(match, settings),
        mlp=mlp,
        mlp_hidden_dim=sizes["f"],
        num_registers=sizes["r"] if "register_tokens" in places else 0,
        layer_scale="blocks/layer_scale1/scale" in places,
        qkv_bias="qkv_bias" in features,
        qkv_bias_mask="bias_mask" in features,
        mask_token="mask_token" in places,
        local_class_norm="local_class_norm" in features,
        **shared,
    )


def _check_activation(match: Match, mlp: str) -> None:
    """Checks the activation that `config.json` names; the arrays do not determine it."""
    activation = settings_beside(match).get("activation")
    expected = {"mlp": "gelu", "swiglu": "silu"}[mlp]
    ignored = mlp == "swiglu" and not match.layout.gate_follows_config
    if activation is not None and activation != expected and not ignored:
        raise UserError(
            f"{match.name} is used with hidden_act={activation}, but such a backbone is computed "
            f"with {expected} here; it cannot be converted."
        )


def _position_grid(match: Match, class_position: bool) -> int:
    positions = match.sizes["backbone"]["n"]
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
        heads = _heads(match, sizes["d"], settings.num_heads, "num_heads")
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


def _heads(match: Match, width: int, explicit: int | None, key: str) -> int:
    """Returns the given number of heads, or width / 64: array shapes do not determine it."""
    if explicit is None and width % _HEAD_WIDTH:
        raise UserError(
            f"{match.name} has width {width}, which is not a multiple of {_HEAD_WIDTH}, so that "
            f"the number of heads cannot be guessed; give it with --set {key}=NUMBER."
        )
    heads = width // _HEAD_WIDTH if explicit is None else explicit
    if width % heads:
        raise UserError(
            f"{key}={heads}{_origin(match, key, heads)} does not divide the width {width} of "
            f"{match.name}; give a number that does with --set {key}=NUMBER."
        )
    return heads


def _origin(match: Match, key: str, value: int | None) -> str:
    """Says, for a sentence, where a number comes from."""
    if settings_beside(match).get(key) == value:
        return " (from config.json next to it)"
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
    if not is_known and presets.find_preset(vision) is None:
        raise _unknown_heads(match, vision.num_heads, "num_heads")
    if text is None or settings.text_num_heads is not None:
        return
    released = TextConfig()
    if (text.width, text.depth) != (released.width, released.depth):
        raise _unknown_heads(_with_component(matches, "text"), text.num_heads, "text_num_heads")


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


def preprocessing(layout: Layout, settings: Settings) -> Preprocessing:
    """Returns the preprocessing: the layout's defaults, overridden by the user's settings."""
    explicit = {
        field.name: value
        for field in dataclasses.fields(Preprocessing)
        if (value := getattr(settings, field.name)) is not None
    }
    return Preprocessing(**{**layout.preprocessing, **explicit})


def tokenizer(text: TextConfig | None) -> dict[str, Any] | None:
    """Returns CLIP's tokenizer if the vocabulary is as large as CLIP's."""
    if text is None or text.vocabulary_size != _CLIP_VOCABULARY_SIZE:
        return None
    return {
        "kind": "clip",
        "context_length": text.context_length,
        "vocabulary_size": text.vocabulary_size,
    }
