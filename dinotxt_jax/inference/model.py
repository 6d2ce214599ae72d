"""A complete dino.txt model, ready to run: encode, embed, classify, segment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from dinotxt_jax.config import DTYPE_NAMES, SegmentationConfig, check
from dinotxt_jax.data.texts import read_templates
from dinotxt_jax.errors import UserError, check_choice
from dinotxt_jax.inference.encoder import Encoder
from dinotxt_jax.inference.images import (
    ImageLike,
    image_sequence,
    patch_batches,
    prepared_image,
    read_image,
    stacks,
)
from dinotxt_jax.inference.loading import load_dinotxt
from dinotxt_jax.inference.prompts import class_features, dense_texts
from dinotxt_jax.inference.protocols import PROTOCOLS, check_protocol
from dinotxt_jax.inference.results import Classification, Segmentation
from dinotxt_jax.inference.segmentation import segment
from dinotxt_jax.inference.windows import in_whole_patches
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.models.vit import PatchBatch
from dinotxt_jax.storage.addresses import AddressLike
from dinotxt_jax.tokenizers import Tokenizer, load_tokenizer


class Model(Encoder):
    """A dino.txt model that takes image files and strings, in addition to `Encoder` arrays."""

    def embed_images(
        self, images: ImageLike | Iterable[ImageLike], batch_size: int = 32
    ) -> Float[np.ndarray, "n D"]:
        """Returns L2-normalised image descriptors.

        Each image is resized by the rule that `preprocessing` names (`data.resizing`).

        Args:
            images: paths, PIL images or arrays (`inference.images.read_image`), one or several.
            batch_size: number of images encoded at once.

        Raises:
            UserError: an image cannot be read or is too wide for the model, or no image is given.
        """
        pixels = (self.prepared(image) for image in image_sequence(images))
        blocks = list(self.embed_batches(self.stacked(pixels, batch_size), batch_size))
        if not blocks:
            raise UserError("there are no images, expected at least one; add an image.")
        return np.concatenate(blocks)

    def prepared(self, image: ImageLike) -> UInt8[np.ndarray, "h w 3"]:
        """Reads an image and resizes it as the model expects; see `embed_images`."""
        description = self.description
        return prepared_image(image, description.preprocessing, description.vision.patch_size)

    def stacked(
        self, images: Iterable[UInt8[np.ndarray, "h w 3"]], batch_size: int
    ) -> Iterator[UInt8[np.ndarray, "b h w 3"] | PatchBatch]:
        """Yields prepared images in batches that `embed_batches` takes."""
        preprocessing, model = self.description.preprocessing, self.description.dinotxt
        if preprocessing.rule == "naflex" and model.mixes_sizes:
            patch, length = model.vision.patch_size, preprocessing.max_patches
            return patch_batches(images, batch_size, patch, length)
        return stacks(images, batch_size)

    def classify(
        self,
        images: ImageLike | Iterable[ImageLike],
        classes: Sequence[str],
        templates: str | Sequence[str] = "openai_80",
        batch_size: int = 32,
    ) -> Classification:
        """Classifies whole images zero-shot.

        Args:
            images: as for `embed_images`.
            classes: class names.
            templates: prompts with `{}` for the name: a list included in the project
                (`data/texts`), a text file, one template, or several.
            batch_size: number of images encoded at once.

        Raises:
            UserError: images, names or templates cannot be used.
        """
        descriptors = self.embed_images(images, batch_size)
        return self.classify_descriptors(descriptors, classes, templates)

    def classify_descriptors(
        self,
        descriptors: Float[np.ndarray, "n D"],
        classes: Sequence[str],
        templates: str | Sequence[str] = "openai_80",
    ) -> Classification:
        """Classifies descriptors returned by `embed_images`; otherwise the same as `classify`."""
        texts = class_features(self, classes, read_templates(templates, "templates"))
        cosines = descriptors @ texts.T
        return Classification(tuple(classes), cosines, self.logit_scale, self.logit_bias)

    def segment(
        self,
        image: ImageLike,
        classes: Sequence[str],
        protocol: str | SegmentationConfig = "slide",
        templates: str | Sequence[str] = "openai_80",
        background: float | str | Sequence[str] | None = None,
        batch_size: int = 8,
    ) -> Segmentation:
        """Predicts the class of every pixel.

        Args:
            image: a single image, as for `embed_images`.
            classes: class names.
            protocol: "slide", "whole", "highres", or a config with custom sizes.
            templates: as for `classify`.
            background: None gives every pixel a class. A number is a threshold: pixels whose best
                score is lower become background (softmax values for slide, cosines otherwise).
                Words (such as "sky", "wall") describe the background. With a number or words, the
                class "background" is the last class.
            batch_size: number of image windows encoded at once.

        Raises:
            UserError: the image, names, templates or protocol cannot be used.
        """
        config = protocol
        if isinstance(config, str):
            config = SegmentationConfig(config, self.description.preprocessing.crop)
        check(config, "segmentation")
        check_protocol(config, self.description.vision, "segmentation")
        self.dense_features(config.features, "segmentation")
        names, texts = dense_texts(
            self, classes, read_templates(templates, "templates"), background
        )
        photo = read_image(image)
        (scores,) = segment(self, [photo], texts, config, batch_size)
        return Segmentation(photo, names, config.protocol, scores)

    def similarity(
        self, image: ImageLike, text: str, protocol: str | SegmentationConfig = "highres"
    ) -> Float[np.ndarray, "gh gw"]:
        """Returns cosine similarities between a free phrase and the image patches.

        Args:
            image: a single image, as for `embed_images`.
            text: the phrase, used without a template.
            protocol: "highres" or "whole", or a config for either with custom sizes.

        Raises:
            UserError: the image, phrase or protocol cannot be used.
        """
        name = protocol if isinstance(protocol, str) else protocol.protocol
        if name in PROTOCOLS and not PROTOCOLS[name].scores_alone:
            suitable = [other for other, candidate in PROTOCOLS.items() if candidate.scores_alone]
            raise UserError(
                f"the protocol {name} compares classes with each other, so that one phrase alone "
                f"has no score; take {' or '.join(suitable)}."
            )
        return self.segment(image, [text], protocol, "{}").scores[..., 0]

    def patch_tokens(
        self, image: ImageLike, size: int = 0, features: str = "auto"
    ) -> Float[np.ndarray, "gh gw d"]:
        """Returns the patch tokens of a whole image, not normalised.

        Args:
            image: a single image, as for `embed_images`; the sides are rounded to whole patches.
            size: short side, pixels (0: `preprocessing.crop`).
            features: kind of patch tokens (`SegmentationConfig.features`).

        Raises:
            UserError: the image cannot be read or is too narrow.
        """
        short = size or self.description.preprocessing.crop
        patch, preparation = self.description.vision.patch_size, self.description.preprocessing
        pixels = in_whole_patches(read_image(image), short, patch)
        encoded = self._run(
            "encode_patches",
            jnp.asarray(pixels[None]),
            pixels=preparation,
            features=self.dense_features(features, "patch_tokens"),
        )
        return np.asarray(encoded.patch_tokens[0])


def load(path: AddressLike, dtype: str = "float32", mesh: Mesh | None = None) -> Model:
    """Loads a complete dino.txt model.

    Args:
        path: a directory made by `python -m weights_convert` or by training, local or in gs://.
        dtype: dtype of arrays and matrix products; "float32" or "bfloat16".
        mesh: device mesh over which arrays and batches are sharded; None uses the first device.

    Raises:
        UserError: the path is not a model directory, or holds only a backbone.
    """
    check_choice("dtype", dtype, DTYPE_NAMES)
    dtypes = DTypes(dtype, dtype)
    module, description = load_dinotxt(path, dtypes, mesh)
    graphdef, state = nnx.split(module)

    def make_tokenizer() -> Tokenizer:
        if description.tokenizer is None:
            raise UserError(
                f"{path} names no tokenizer, so texts cannot be encoded, only token rows; use "
                "model.encode_text(tokens) with ids of your own tokenizer."
            )
        return load_tokenizer(description.tokenizer, description.folder(path))

    return Model(graphdef, nnx.to_pure_dict(state), description, make_tokenizer, mesh)
