"""Begins the trained parts with those of a model directory instead of new values.

Text transformer and logit scale belong together; the head belongs to the backbone that it was
trained on. A text transformer for descriptors of another width gets a new projection.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from absl import logging
from jax.sharding import Mesh

from dinotxt_jax.config import Config
from dinotxt_jax.config.architecture import DinoTxtConfig, HeadConfig, TextConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.models.dinotxt import DinoTxt
from dinotxt_jax.models.layers import DTypes, abstract_arrays
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.model_arrays import load_parts
from dinotxt_jax.storage.model_directory import ModelDescription, read_description
from dinotxt_jax.tokenizers import Tokenizer, load_tokenizer

_KEY = "config.start_from"


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """The model directory that a run starts from.

    Attributes:
        path: the directory.
        description: content of its `model.json`.
        parts: what is taken from it: "head", "text".
    """

    path: str
    description: ModelDescription
    parts: tuple[str, ...]

    @property
    def has_text(self) -> bool:
        return "text" in self.parts

    def text_config(self, embed_dim: int) -> TextConfig:
        """Returns the architecture of the text transformer for descriptors of this width.

        Raises:
            UserError: it has no projection that could be replaced.
        """
        text = self.description.dinotxt.text
        if text.embed_dim == embed_dim:
            return text
        projection = "linear" if text.projection == "none" else text.projection
        return dataclasses.replace(text, embed_dim=embed_dim, projection=projection)

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer that the text transformer was trained with.

        Raises:
            UserError: the directory names none.
        """
        if self.description.tokenizer is None:
            raise UserError(
                f"{_KEY}={self.path} names no tokenizer, so that captions cannot be encoded for "
                "its text transformer; convert it again with its tokenizer file next to it."
            )
        return load_tokenizer(self.description.tokenizer, self.description.folder(self.path))

    def check(self, config: Config, backbone: ModelDescription, head: HeadConfig) -> None:
        """Raises `UserError` if the directory does not fit the run's settings and backbone."""
        model = self.description.dinotxt
        if "head" in self.parts:
            self._check_head(backbone, head)
        if not self.has_text:
            return
        text, scale = model.text, math.exp(self._logit_scale())
        if config.text.pack and (text.pooling != "end" or not text.causal):
            raise UserError(
                f"config.text.pack is True, but the text transformer of {_KEY}={self.path} reads "
                "whole rows; set config.text.pack=False."
            )
        if scale > config.loss.max_logit_scale * (1 + 1e-6):
            raise UserError(
                f"config.loss.max_logit_scale is {config.loss.max_logit_scale:g}, expected at "
                f"least {scale:.4g}, the factor of {_KEY}={self.path}; raise it."
            )

    def _check_head(self, backbone: ModelDescription, head: HeadConfig) -> None:
        own = self.description.dinotxt.head
        leave_out = "set config.start_parts=('text',) to begin with a new head"
        if own.num_blocks and self.description.fingerprint != backbone.fingerprint:
            raise UserError(
                f"the head of {_KEY}={self.path} was trained on another backbone than "
                f"config.backbone; take that backbone, or {leave_out}."
            )
        differing = [
            f"{field.name} {getattr(own, field.name)}"
            for field in dataclasses.fields(HeadConfig)
            if getattr(own, field.name) != getattr(head, field.name)
        ]
        if differing and (own.num_blocks or head.num_blocks or own.projection):
            raise UserError(
                f"the head of {_KEY}={self.path} has {', '.join(differing)}, which differs from "
                f"config.head; correct config.head, or {leave_out}."
            )

    def _logit_scale(self) -> float:
        scalar = abstract_arrays(lambda: self._declared(), None)["logit_scale"]
        return float(load_parts(self.path, {"logit_scale": scalar})["logit_scale"])

    def _declared(self) -> DinoTxt:
        return DinoTxt(self.description.dinotxt, dtypes=DTypes())

    def filled(
        self, trainable: dict[str, Any], model: DinoTxtConfig, dtypes: DTypes, mesh: Mesh
    ) -> dict[str, Any]:
        """Returns the initial arrays of a run, with those that the directory has.

        Args:
            trainable: new arrays of all trained parts.
            model: the run's architecture.
            dtypes: dtypes of trained arrays.
            mesh: the mesh that holds them.
        """
        own = self.description.dinotxt
        abstract = abstract_arrays(lambda: DinoTxt(own, dtypes=dtypes), mesh)
        names = [*self.parts, *(("logit_scale",) if self.has_text else ())]
        if self.has_text and own.logit_bias and "logit_bias" in trainable:
            names.append("logit_bias")
        requested = {name: abstract[name] for name in names if name in abstract}
        loaded = load_parts(self.path, requested)
        if self.has_text and own.text.embed_dim != model.text.embed_dim:
            # Descriptors of another width need another projection, which begins anew.
            fresh = {"projection": trainable["text"]["projection"]}
            loaded["text"] = {k: v for k, v in loaded["text"].items() if k != "projection"} | fresh
        if processes.is_first():
            new = sorted(set(trainable) - set(loaded))
            logging.info(
                "%s from %s%s",
                ", ".join(loaded),
                self.path,
                f"; new: {', '.join(new)}" if new else "",
            )
        return trainable | loaded


def starting_point(config: Config) -> StartingPoint | None:
    """Returns where a run starts from, or None if all trained parts begin anew.

    Raises:
        UserError: the directory holds no whole model.
    """
    if not config.start_from:
        return None
    description = read_description(config.start_from)
    if description.text is None:
        raise UserError(
            f"{_KEY}={config.start_from} holds a backbone without head and text transformer; "
            "name a whole model."
        )
    return StartingPoint(config.start_from, description, config.start_parts)
