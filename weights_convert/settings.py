"""Settings that array shapes do not determine: from `--set`, or from files next to a checkpoint."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from dinotxt_jax.config.architecture import ACTIVATIONS, POSITION_INTERPOLATIONS
from dinotxt_jax.config.data import RESIZE_RULES
from dinotxt_jax.errors import UserError
from weights_convert.configs import described_beside
from weights_convert.matching import Match


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that array shapes do not determine; None selects the default.

    Attributes:
        num_heads: attention heads in backbone and vision head; known for released models.
        text_num_heads: attention heads in the text transformer; known for the released one.
        activation: activation function of the MLPs, in both transformers.
        text_activation: the same for the text transformer alone, if it differs.
        layer_norm_epsilon: LayerNorm epsilon in the backbone; default: the layout's usual value.
        text_layer_norm_epsilon: the same for the text transformer.
        end_id: ID of the end-of-text token; default: the largest ID in a row.
        rope_theta: longest rotary period, for periods that are not stored; default 100.
        position_interpolation: rule that resizes learned positions; default: the rule in the
            library that the layout belongs to.
        mean, std: pixel statistics in the backbone's training, in [0, 1] per channel.
        resize, crop: short side, then side of the center crop, pixels.
        rule: how images are resized in evaluation; default: as the layout's models are used.
        max_patches: with rule=naflex, maximum number of patches per image; default 256.
    """

    num_heads: int | None = None
    text_num_heads: int | None = None
    activation: str | None = None
    text_activation: str | None = None
    layer_norm_epsilon: float | None = None
    text_layer_norm_epsilon: float | None = None
    end_id: int | None = None
    rope_theta: float | None = None
    position_interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: int | None = None
    crop: int | None = None
    rule: str | None = None
    max_patches: int | None = None


_CHOICES = {
    "position_interpolation": POSITION_INTERPOLATIONS,
    "activation": ACTIVATIONS,
    "text_activation": ACTIVATIONS,
    "rule": RESIZE_RULES,
}


def parse_settings(pairs: Iterable[str]) -> Settings:
    """Reads `--set KEY=VALUE` arguments.

    Raises:
        UserError: an unknown key, or an invalid value.
    """
    values: dict[str, Any] = {}
    keys = [field.name for field in dataclasses.fields(Settings)]
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in keys:
            raise UserError(
                f"--set {pair!r} is not known; give KEY=VALUE with a KEY of {', '.join(keys)}."
            )
        if key in ("mean", "std"):
            values[key] = _three_numbers(key, value)
        elif key in ("layer_norm_epsilon", "text_layer_norm_epsilon", "rope_theta"):
            values[key] = _positive_number(key, value)
        elif key in _CHOICES:
            if value not in _CHOICES[key]:
                raise UserError(
                    f"--set {key} takes one of {', '.join(_CHOICES[key])}, not {value!r}."
                )
            values[key] = value
        else:
            if not (value.isascii() and value.isdigit() and 0 < int(value[:9]) == int(value)):
                raise UserError(f"--set {key} takes a positive whole number, not {value!r}.")
            values[key] = int(value)
    return Settings(**values)


def _positive_number(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UserError(f"--set {key} takes a number above zero, not {value!r}.")
    return number


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


def completed(settings: Settings, matches: Iterable[Match]) -> Settings:
    """Returns the user's settings, falling back to config files next to the checkpoint.

    Raises:
        UserError: a setting that the layout asks for is not known, or a config file names a
            function that is not known here.
    """
    explicit = {k: v for k, v in dataclasses.asdict(settings).items() if v is not None}
    known: dict[str, Any] = {}
    keys = {field.name for field in dataclasses.fields(Settings)}
    for match in matches:
        found = {k: v for k, v in settings_beside(match).items() if k in keys}
        # Marks in the arrays themselves count less than what the user or a file says.
        known = implied_by_arrays(match) | known | found
        for key, reason in match.layout.asked.items():
            if key not in known | explicit:
                raise UserError(
                    f"{match.name} does not say its {key}: {reason}; give it with --set "
                    f"{key}=VALUE."
                )
    return Settings(**(known | explicit))


def implied_by_arrays(match: Match) -> dict[str, Any]:
    """Returns settings that follow from arrays that only one publisher writes."""
    marks = match.layout.marks
    return {k: v for name in marks if name in match.arrays for k, v in marks[name].items()}


def settings_beside(match: Match) -> dict[str, Any]:
    """Returns what config files next to a checkpoint say (`configs.described_beside`)."""
    return described_beside(match.source.files[0], match.layout.config, match.prefix)
