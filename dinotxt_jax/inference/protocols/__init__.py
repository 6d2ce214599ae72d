"""Dense prediction protocols: one module per protocol, and one table.

For every protocol, scores are resampled bilinearly to the image size, and every pixel gets the
class of the text with the highest score (`inference.dense`).

To add a protocol, write a module with a `DenseProtocol` and add a row here.
"""

from __future__ import annotations

from dinotxt_jax.config import SegmentationConfig
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


def check_protocol(config: SegmentationConfig, patch: int, where: str) -> None:
    """Raises `UserError` for sizes that do not fit the backbone's patch size.

    Args:
        config: the protocol settings, already accepted by `config.check`.
        patch: patch side, pixels.
        where: the config key for these settings, for messages.
    """
    PROTOCOLS[config.protocol].check(config, patch, where)
