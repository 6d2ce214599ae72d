"""Converts a source example to a shard record, or explains why the example cannot be stored."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from dinotxt_jax.config import IngestionConfig
from dinotxt_jax.config.ingestion import ENCODINGS, KEEP, PAIR
from dinotxt_jax.data.array_records import packed
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Example, Source
from dinotxt_jax.data.transforms import decode_image, open_image

_BICUBIC = Image.Resampling.BICUBIC
_LOSSLESS = "PNG"
_HAS_QUALITY = ("JPEG", "WEBP")
# Pillow reports this format for JPEGs to which a camera appended further pictures; decoders of JPEG
# read only the first picture.
_SEVERAL_JPEGS = "MPO"


class StoredExample(NamedTuple):
    """A packed record with the sizes that the statistics count.

    Attributes:
        record: the packed record.
        width, height: stored image size in pixels, after applying the EXIF orientation.
        format: image format name in Pillow.
        image_bytes: image file size in bytes.
        caption_lengths: number of characters in each caption.
    """

    record: bytes
    width: int
    height: int
    format: str
    image_bytes: int
    caption_lengths: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Quarantined:
    """An example that cannot be stored; each line in quarantine.jsonl has these fields.

    Attributes:
        index: source index.
        key: example name; empty if the name cannot be read either.
        reason: why the example cannot be stored, on one line.
    """

    index: int
    key: str
    reason: str


class _StoredImage(NamedTuple):
    content: bytes
    width: int
    height: int
    format: str


def to_record(source: Source, index: int, config: IngestionConfig) -> StoredExample | Quarantined:
    """Reads an example and packs a record, which depends only on the example and the settings.

    Raises:
        UserError: the source has changed since it was opened.
        OSError: the storage failed repeatedly.
    """
    try:
        example = source[index]
        image = _stored_image(example, config)
        record = packed(Example(image.content, example.captions, example.key))
    except BadImageError as error:
        return Quarantined(index, _key(source, index), " ".join(str(error).split()))
    except UnicodeEncodeError as error:
        return Quarantined(index, _key(source, index), f"a text is not valid Unicode ({error})")
    lengths = tuple(map(len, example.captions))
    return StoredExample(
        record, image.width, image.height, image.format, len(image.content), lengths
    )


def _key(source: Source, index: int) -> str:
    try:
        return source.key(index)
    except BadImageError:
        return ""


def _stored_image(example: Example, config: IngestionConfig) -> _StoredImage:
    """Returns the image file to store: the original bytes if possible, otherwise re-encoded.

    Raises:
        BadImageError: the image cannot be decoded, or cannot be encoded again.
    """
    image, target = example.image, ENCODINGS.get(config.encoding)
    if isinstance(image, bytes):
        opened, (width, height) = open_image(image, config.data.max_pixels)
        name = "JPEG" if opened.format == _SEVERAL_JPEGS else str(opened.format)
        is_small = not config.resize or min(width, height) <= config.resize
        if is_small and config.encoding in (KEEP, name.lower()):
            if config.verify:
                decode_image(opened)
            return _StoredImage(image, width, height, name)
        target = target or (name if name in ENCODINGS.values() else _LOSSLESS)
        picture = decode_image(opened)
    else:
        picture = decode_image(image)
    return _encoded(_reduced(picture, config.resize), target or _LOSSLESS, config.quality)


def _reduced(picture: Image.Image, short_side: int) -> Image.Image:
    """Shrinks an image so that the short side is at most `short_side` pixels; 0 keeps the size."""
    short, long = sorted(picture.size)
    if not 0 < short_side < short:
        return picture
    long = round(short_side * long / short)
    size = (short_side, long) if picture.width <= picture.height else (long, short_side)
    return picture.resize(size, _BICUBIC)


def _encoded(picture: Image.Image, target: str, quality: int) -> _StoredImage:
    buffer = io.BytesIO()
    options = {"quality": quality} if target in _HAS_QUALITY else {}
    try:
        picture.save(buffer, target, **options)
    except (OSError, ValueError) as error:  # the format does not support images this large
        size = f"{picture.width} x {picture.height} pixels"
        raise BadImageError(f"{size} cannot be stored as {target} ({error})") from error
    return _StoredImage(buffer.getvalue(), picture.width, picture.height, target)


def content_hash(source: Source, index: int, config: IngestionConfig) -> bytes | None:
    """Hashes an example's image, and the captions too if `config.deduplicate` is "pair".

    Returns:
        A 16-byte hash, or None if the example cannot be read, has no image header, or contains
        invalid texts. `to_record` quarantines such examples, so they must not count as the first
        copy and remove a valid example as the duplicate.

    Raises:
        UserError: the source has changed since it was opened.
        OSError: the storage failed repeatedly.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        example = source[index]
        if isinstance(example.image, bytes):
            open_image(example.image, config.data.max_pixels)
            _update(digest, example.image)
        else:
            pixels = np.ascontiguousarray(example.image)
            _update(digest, f"{pixels.dtype}{pixels.shape}".encode())
            _update(digest, pixels.tobytes())
        texts = [text.encode() for text in (example.key, *example.captions)]
    except (BadImageError, UnicodeEncodeError):
        return None
    for text in texts[1:] if config.deduplicate == PAIR else ():
        _update(digest, text)
    return digest.digest()


def _update(digest: hashlib.blake2b, content: bytes) -> None:
    """Hashes the length, then the bytes, so that ("ab", "c") and ("a", "bc") differ."""
    digest.update(len(content).to_bytes(8, "little"))
    digest.update(content)
