"""Creates the model that a run trains from the config; checks it before anything is compiled."""

from __future__ import annotations

from absl import logging
from jax.sharding import Mesh

from dinotxt_jax import sharding
from dinotxt_jax.config import Config
from dinotxt_jax.config.architecture import (
    DinoTxtConfig,
    HeadConfig,
    TextConfig,
    descriptor_dim,
    divides,
    swiglu_hidden_dim,
)
from dinotxt_jax.errors import UserError
from dinotxt_jax.models import attention
from dinotxt_jax.models.dinotxt import DinoTxt
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.model_directory import ModelDescription
from dinotxt_jax.training.start import StartingPoint


def create_model(model: DinoTxtConfig, config: Config) -> DinoTxt:
    """Returns the model of a run; arrays are declared, not allocated."""
    return DinoTxt(
        model,
        dtypes=trained_dtypes(config),
        frozen_dtypes=frozen_dtypes(config),
        drop_path=config.head.drop_path,
        remat=config.remat,
        attention=config.attention,
    )


def model_config(
    config: Config,
    backbone: ModelDescription,
    vocabulary_size: int,
    start: StartingPoint | None = None,
) -> DinoTxtConfig:
    """Returns the architecture that a run trains on a backbone.

    Raises:
        UserError: the head count of the vision head does not divide the backbone width, or the
            model that the run starts from does not fit.
    """
    vision, text = backbone.vision, config.text
    heads = config.head.num_heads or vision.num_heads
    width = f"{vision.dim}, the width of the backbone"
    for sentence in divides("config.head.num_heads", heads, vision.dim, width):
        raise UserError(sentence)
    head = HeadConfig(
        num_blocks=config.head.num_blocks,
        num_heads=heads,
        mlp_hidden_dim=swiglu_hidden_dim(vision.dim),
        pooling=config.head.pooling,
        layer_scale=config.head.layer_scale,
    )
    embed_dim = descriptor_dim(vision.dim, config.head.pooling)
    logit_bias = config.loss.kind == "sigmoid"
    if start is not None:
        start.check(config, backbone, head)
        if start.has_text:
            return DinoTxtConfig(vision, head, start.text_config(embed_dim), logit_bias)
    return DinoTxtConfig(
        vision,
        head,
        TextConfig(
            vocabulary_size=vocabulary_size,
            context_length=config.tokenizer.context_length,
            width=text.width,
            depth=text.depth,
            num_heads=text.num_heads,
            mlp_hidden_dim=4 * text.width,
            embed_dim=embed_dim,
        ),
        logit_bias,
    )


def warn_of_whole_heads(model: DinoTxtConfig, mesh: Mesh) -> None:
    """Logs a warning with the attentions that every device on the tensor axis computes in full."""
    parts = sharding.parts_of("heads", mesh)
    counts = {
        "the backbone": model.vision.num_heads,
        "the vision head": model.head.num_heads if model.head.num_blocks else 0,
        "the text transformer": model.text.num_heads,
    }
    whole = [f"{count} of {name}" for name, count in counts.items() if count % parts]
    if whole and processes.is_first():
        logging.warning(
            "config.mesh.tensor=%d does not divide the attention heads (%s), so that each of its "
            "devices computes all of them; a divisor of their numbers splits them",
            parts,
            ", ".join(whole),
        )


def trained_dtypes(config: Config) -> DTypes:
    """Returns the dtypes of head and text transformer."""
    precision = config.precision
    return DTypes(precision.parameters, precision.compute, precision.normalization)


def frozen_dtypes(config: Config) -> DTypes:
    """Returns the dtypes of the backbone."""
    precision = config.precision
    dtype = precision.frozen
    return DTypes(dtype, dtype, precision.normalization, precision.frozen_products)


def chosen_attention(config: Config, model: DinoTxtConfig, mesh: Mesh) -> str:
    """Resolves `config.attention` for the mesh devices, which may be on another machine.

    Raises:
        UserError: the setting is impossible on these devices.
    """
    return attention.choose(
        config.attention,
        mesh.devices.flat[0].platform,
        dtypes=(config.precision.compute, config.precision.frozen),
        head_dims=model.head_dims,
    )
