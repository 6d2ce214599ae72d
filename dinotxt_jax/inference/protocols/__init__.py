"""Dense prediction protocols: one module per protocol, and one table.

For every protocol, scores are resampled bilinearly to the image size, and every pixel gets the
class of the text with the highest score (`inference.dense`).

To add a protocol, write a module with a `DenseProtocol` and add a row here.
"""

from __future__ import annotations

from dinotxt_jax.config import SegmentationConfig
from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference.protocols.highres import HighRes
from dinotxt_jax.inference.protocols.protocol import DenseProtocol
from dinotxt_jax.inference.protocols.slide import Slide
from dinotxt_jax.inference.protocols.whole import Whole

PROTOCOLS: dict[str, DenseProtocol] = {
    "slide": Slide(),
    "whole": Whole(),
    "highres": HighRes(),
}
"""All protocols, keyed by the name used in `SegmentationConfig.protocol`."""


def check_protocol(config: SegmentationConfig, vision: VisionConfig, where: str) -> None:
    """Raises `UserError` for settings that do not fit the backbone.

    Args:
        config: the protocol settings, already accepted by `config.check`.
        vision: the backbone's architecture.
        where: the config key for these settings, for messages.
    """
    PROTOCOLS[config.protocol].check(config, vision.patch_size, where)
    if config.features.startswith("map_values") and not vision.attention_pooling:
        raise UserError(
            f"{where}.features is {config.features}, which only models with an attention pooling "
            "head have (SigLIP); set it to auto."
        )
