"""Protocols of dense prediction: one module each, and one table.

The scores of every protocol are brought bilinearly to the size of the image; every pixel gets the
class of the text with the highest score (`inference.dense`).

A new protocol is a module with a `DenseProtocol`, and a row here.
"""

from __future__ import annotations

from dinotxt_jax.config import SegmentationConfig
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
"""Every protocol, under the name that `SegmentationConfig.protocol` has."""


def check_protocol(config: SegmentationConfig, patch: int, where: str) -> None:
    """Raises `UserError`, beginning with `where`, for settings that make no sense."""
    if config.protocol not in PROTOCOLS:
        raise UserError(
            f"{where} has protocol={config.protocol!r}, which is unknown; choose among "
            f"{', '.join(PROTOCOLS)}."
        )
    PROTOCOLS[config.protocol].check(config, patch, where)
