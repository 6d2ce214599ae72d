"""Images with index masks, for segmentation: a CSV of pairs, or a data set's own folders."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int, Shaped
from PIL import Image

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.csv_index import read_index
from dinotxt_jax.data.examples import folder_of_images, nothing_left, path_of
from dinotxt_jax.data.mask_layouts import IGNORED, LAYOUTS, Layout, one_value_a_pixel
from dinotxt_jax.data.scenes import SceneSource
from dinotxt_jax.data.texts import BACKGROUND, read_list
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError

Pair = tuple[str, str]
SOURCES = ("csv", "masks", "scenes")


class MaskSource(Protocol):
    """Images of which the class of every pixel is known.

    Attributes:
        class_names: one a class, in the order of the indices.
        background: the index of the class that means "anything else", if there is one.
    """

    class_names: tuple[str, ...]
    background: int | None

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """The name under which reports speak of an example."""

    def load(self, index: int) -> tuple[Image.Image, Int[np.ndarray, "h w"]]:
        """An upright RGB image and its mask, `IGNORED` where there is no class."""


class SceneMasks:
    """Drawn scenes and their masks, a `MaskSource`; shapes and the background."""

    def __init__(self, scenes: SceneSource):
        self._scenes = scenes
        self.class_names = scenes.CLASSES
        self.background: int | None = scenes.CLASSES.index(BACKGROUND)

    def __len__(self) -> int:
        return len(self._scenes)

    def key(self, index: int) -> str:
        """The scene's name."""
        return self._scenes[index].key

    def load(self, index: int) -> tuple[Image.Image, Int[np.ndarray, "h w"]]:
        """The picture of a scene and its mask."""
        scene = self._scenes.scene(index)
        return Image.fromarray(scene.image), scene.mask.astype(np.int32)


class MaskFiles:
    """Image files, each with a file that says the class of every pixel, a `MaskSource`.

    Images are turned upright by their EXIF orientation; masks are taken as they are stored and must
    be upright already.
    """

    def __init__(
        self,
        root: Path,
        pairs: Sequence[Pair],
        to_indices: Callable[[Shaped[np.ndarray, "h w *rgb"]], Int[np.ndarray, "h w"]],
        class_names: Sequence[str],
        background: int | None,
    ):
        """
        Args:
            root: folder that the paths in `pairs` are relative to.
            pairs: (image file, mask file).
            to_indices: the pixels of a mask, as PIL opens it ([h w] indices or [h w 3] colours) ->
                class indices, `IGNORED` where there is none. Raises `ValueError` with the end of a
                sentence that the name of the mask begins.
            class_names, background: see the attributes.
        """
        if len(class_names) > IGNORED:
            raise UserError(
                f"there are {len(class_names)} class names, expected at most {IGNORED}, because "
                f"{IGNORED} in a mask means no class; name fewer."
            )
        self._root, self._pairs, self._to_indices = root, pairs, to_indices
        self.class_names = tuple(class_names)
        self.background = background

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """The name under which reports speak of an example."""
        return self._pairs[index][0]

    def load(self, index: int) -> tuple[Image.Image, Int[np.ndarray, "h w"]]:
        """An upright RGB image and its mask.

        Raises:
            UserError: a file that cannot be read, a mask of another size, or one with a value that
                no class has.
        """
        image_name, mask_name = self._pairs[index]
        try:
            data = (self._root / image_name).read_bytes()
            image = decode_image(data)
        except (BadImageError, OSError) as error:
            raise UserError(
                f"{image_name} cannot be read ({error}); repair or remove it."
            ) from error
        pixels = self._mask_pixels(image_name, mask_name)
        height, width = pixels.shape[:2]
        if (width, height) != image.size:
            turned = Image.open(io.BytesIO(data)).size == (width, height)
            raise UserError(
                f"{mask_name} has the shape {list(pixels.shape)}, but {image_name} has "
                f"{list(image.size[::-1])} pixels"
                + (
                    " once turned upright by its EXIF orientation; turn the mask upright, too."
                    if turned
                    else ", expected as many; correct the pair."
                )
            )
        try:
            return image, self._to_indices(pixels)
        except ValueError as error:
            raise UserError(f"{mask_name} {error}.") from error

    def _mask_pixels(self, image_name: str, mask_name: str) -> Shaped[np.ndarray, "h w *rgb"]:
        try:
            return np.asarray(Image.open(io.BytesIO((self._root / mask_name).read_bytes())))
        except MemoryError:
            raise
        except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error, ...
            raise UserError(
                f"{mask_name}, the mask of {image_name}, cannot be read ({error}); repair or "
                "remove the pair."
            ) from error


def open_masks(config: DataConfig) -> MaskSource:
    """Opens `config.source` "csv" (pairs), "masks" (a data set as published) or "scenes" (drawn).

    csv: `config.path` has the columns `image` (or `file`, ...) and `mask`, both relative to
    `config.image_root`; `config.classes` names the classes by index, and one that is called
    "background" means anything else.

    masks: `config.name` is one of `LAYOUTS`, `config.path` the data set's root folder and
    `config.split` the split ("": the one to evaluate on). `config.classes` may give the classes
    other names.

    Raises:
        UserError: missing or empty data, an image without mask, or no class names.
    """
    if config.source not in SOURCES:
        raise UserError(
            f"data.source is {config.source!r}, which has no masks; take one of "
            f"{', '.join(SOURCES)}."
        )
    if config.source == "scenes":
        return SceneMasks(
            SceneSource(
                config.num_scenes, split=config.split or "test", image_size=config.image_size
            )
        )
    return _from_csv(config) if config.source == "csv" else _from_folders(config)


def _from_csv(config: DataConfig) -> MaskSource:
    path = path_of(config)
    if not config.classes:
        raise UserError(
            "data.classes is empty, expected the names of the classes that masks hold; set it "
            "to a text file with one a line."
        )
    names = read_list(config.classes, "data.classes")
    pairs = [(row.file, row.value) for row in read_index(path, "mask", config.split)]
    to_indices = functools.partial(_checked_indices, classes=len(names))
    background = names.index(BACKGROUND) if BACKGROUND in names else None
    root = folder_of_images(path, config.image_root)
    return MaskFiles(root, pairs, to_indices, names, background)


def _checked_indices(
    pixels: Shaped[np.ndarray, "h w *rgb"], classes: int
) -> Int[np.ndarray, "h w"]:
    """The pixels of a mask that holds class indices."""
    mask = one_value_a_pixel(pixels)
    outside = mask[(mask != IGNORED) & ((mask < 0) | (mask >= classes))]
    if outside.size:
        raise ValueError(
            f"holds the index {outside.min()}, but there are {classes} classes (0 to "
            f"{classes - 1}, {IGNORED} for none); correct it, or data.classes"
        )
    return mask


def _from_folders(config: DataConfig) -> MaskSource:
    layout = LAYOUTS.get(config.name)
    if layout is None:
        raise UserError(
            f"data.name is {config.name!r}, which is no known data set with masks; choose among "
            f"{', '.join(LAYOUTS)}."
        )
    names = layout.class_names()
    if config.classes:
        own = read_list(config.classes, "data.classes")
        if len(own) != len(names):
            raise UserError(
                f"data.classes names {len(own)} classes, but {config.name} has {len(names)}; name "
                "each, in the order of the indices."
            )
        names = own
    if config.split and not layout.split:
        raise UserError(
            f"data.split is {config.split!r}, but {config.name} has no splits; leave it empty."
        )
    root, pairs = _located_pairs(config, layout, config.split or layout.split)
    return MaskFiles(root, pairs, layout.to_indices, names, 0 if layout.background else None)


def _located_pairs(config: DataConfig, layout: Layout, split: str) -> tuple[Path, list[Pair]]:
    """The root folder, and the pairs of a split relative to it, each checked to be there."""
    path = Path(config.path)
    roots = [path, path / layout.folder] if layout.folder else [path]
    places = [_Place(*parts) for parts in itertools.product(roots, layout.images, layout.masks)]
    place = next((place for place in places if place.holds(split)), None)
    if place is None:
        raise _not_found(config, layout, {name for place in places for name in place.splits()})
    names = (
        _listed(place.root / layout.split_list.format(split=split), split)
        if layout.split_list
        else place.names(split)
    )
    if not names:
        raise nothing_left(place.root / _folder(place.image, split), "", set())
    pairs = [
        (place.image.format(split=split, name=name), place.mask.format(split=split, name=name))
        for name in names
    ]
    for image, mask in pairs:
        if not (place.root / image).is_file():
            raise UserError(
                f"{place.root / image} is missing, expected an image of the split {split}; restore "
                "it."
            )
        if not (place.root / mask).is_file():
            raise UserError(
                f"{place.root / mask} is missing, expected the mask of {image}; add it, or remove "
                "the image."
            )
    return place.root, pairs


@dataclasses.dataclass(frozen=True)
class _Place:
    """A folder in which a data set may lie, with the templates of images and masks (`Layout`)."""

    root: Path
    image: str
    mask: str

    def holds(self, split: str) -> bool:
        folders = [_folder(self.image, split), _folder(self.mask, split)]
        return all((self.root / folder).is_dir() for folder in folders)

    def splits(self) -> list[str]:
        """Those that are folders, of images and of masks."""
        above, place, _ = self.image.partition("{split}")
        folder = self.root / above
        if not place or not folder.is_dir():
            return []
        return [entry.name for entry in folder.iterdir() if self.holds(entry.name)]

    def names(self, split: str) -> list[str]:
        """Of all images in the folder of a split, sorted."""
        folder = self.root / _folder(self.image, split)
        ending = self.image.partition("{name}")[2]
        files = [file.relative_to(folder).as_posix() for file in folder.rglob(f"*{ending}")]
        return sorted(file.removesuffix(ending) for file in files)


def _folder(template: str, split: str) -> str:
    return template.partition("{name}")[0].format(split=split)


def _listed(file: Path, split: str) -> tuple[str, ...]:
    """The names in the list of a split."""
    if not file.is_file():
        there = ", ".join(sorted(other.stem for other in file.parent.glob(f"*{file.suffix}")))
        advice = f"correct data.split (there are {there})" if there else "restore it"
        raise UserError(
            f"{file} is missing, expected the names of the images of split {split!r}; {advice}."
        )
    return read_list(str(file), "data.split")


def _not_found(config: DataConfig, layout: Layout, splits: set[str]) -> UserError:
    """The error of a data set that is not where it was said to be; `splits` are there."""
    if splits:
        return UserError(
            f"{config.path} has no split {config.split or layout.split!r} of {config.name}, it has "
            f"{', '.join(sorted(splits))}; correct data.split."
        )
    return UserError(
        f"{config.path!r} is not the folder of {config.name}, expected {layout.about}; correct "
        "data.path."
    )
