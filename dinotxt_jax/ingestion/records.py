"""One example of a source as a record of a shard, or the reason why it cannot be stored."""

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
# Cameras append further pictures to a JPEG, which Pillow then names so; readers see the first one.
_SEVERAL_JPEGS = "MPO"


class StoredExample(NamedTuple):
    """A record and what statistics need of it.

    Attributes:
        record: the packed record.
        width, height: size of the stored image, upright, in pixels.
        format: Pillow's name of the image format.
        image_bytes: size of the image file.
        caption_lengths: characters of each caption.
    """

    record: bytes
    width: int
    height: int
    format: str
    image_bytes: int
    caption_lengths: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Quarantined:
    """An example that cannot be stored; the fields are those of a line in quarantine.jsonl.

    Attributes:
        index: its index in the source.
        key: its name; empty if that cannot be read either.
        reason: the first line of the reason.
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
    """Reads an example and makes the record for it, which depends on nothing else.

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
        return Quarantined(index, _key(source, index), f"a text is no valid Unicode ({error})")
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
    """Returns the image file to store.

    Raises:
        BadImageError: the image does not decode, or cannot be encoded.
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
    """Resizes an image so that the short side is at most `short_side` pixels; 0 keeps the size."""
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
    except (OSError, ValueError) as error:  # the format allows no image of this size
        size = f"{picture.width} x {picture.height} pixels"
        raise BadImageError(f"{size} cannot be stored as {target} ({error})") from error
    return _StoredImage(buffer.getvalue(), picture.width, picture.height, target)


def content_hash(source: Source, index: int, config: IngestionConfig) -> bytes | None:
    """Returns 16 bytes that are equal for examples with the same image (and captions).

    None for an example that cannot be read, has no image header, or has invalid texts: `to_record`
    puts each of these into the quarantine, and none of them replaces a good one.

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
    """Adds bytes after their number, so that different lists never give the same bytes."""
    digest.update(len(content).to_bytes(8, "little"))
    digest.update(content)
