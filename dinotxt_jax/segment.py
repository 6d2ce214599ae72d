"""Segments an image by free text, or draws where a phrase matches.

    python -m dinotxt_jax.segment IMAGE --model=DIR --classes "dog; grass; sky" --output=FILE.png
    python -m dinotxt_jax.segment IMAGE --model=DIR --classes "a dog's ear" --picture=similarity \\
        --output=FILE.png

Every pixel gets the class whose text is most similar (--picture=overlay). --classes may also name a
text file with one class per line, or a list included in the project (ade20k_150, voc_20, ...).
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.config import DTYPE_NAMES
from dinotxt_jax.config.evaluation import PROTOCOL_SIDES
from dinotxt_jax.errors import UserError

_MODEL = flags.DEFINE_string("model", None, cli.MODEL_HELP, required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The picture to write, PNG or JPEG.", required=True)
_CLASSES = flags.DEFINE_string("classes", "", 'Names between ";", a text file, or a list.')
_PICTURE = flags.DEFINE_string(
    "picture", "overlay", "overlay, heat (all scores), similarity (of one phrase) or pca (patches)."
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol", "slide", list(PROTOCOL_SIDES), "slide, whole or highres (for overlay, heat)."
)
_TEMPLATES = flags.DEFINE_string("templates", "openai_80", "A list, a text file, or one template.")
_BACKGROUND = flags.DEFINE_string(
    "background",
    "",
    "A score below which a pixel is background, or words that describe the background.",
)
_LABELS = flags.DEFINE_string("labels", "", "Also write the class indices, as an 8-bit PNG.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Windows per batch.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPE_NAMES, "float32 or bfloat16.")


def _body(paths: Sequence[str]) -> None:
    from dinotxt_jax.data.texts import check_several, read_names, read_templates
    from dinotxt_jax.hub.fetched import load_named
    from dinotxt_jax.inference.images import read_image
    from dinotxt_jax.inference.pictures import (
        SEGMENTED,
        check_file,
        check_picture,
        draw_picture,
        write_picture,
    )
    from dinotxt_jax.storage.addresses import to_address

    if len(paths) != 1:
        raise UserError(f"{len(paths)} images are named, expected one; see --help.")
    if to_address(paths[0]).is_dir():
        raise UserError(f"{paths[0]} is a folder, expected one image; name a file in it.")
    check_file(_OUTPUT.value)
    if _LABELS.value:
        check_file(_LABELS.value, (".png",))
        if _PICTURE.value not in SEGMENTED:
            raise UserError(f"--picture={_PICTURE.value} has no labels; leave out --labels.")
    names = read_names(_CLASSES.value, "--classes") if _CLASSES.value else ()
    background = _background(_BACKGROUND.value)
    check_picture(_PICTURE.value, names)
    compared = _PICTURE.value == "overlay" or (_PICTURE.value, _PROTOCOL.value) == ("heat", "slide")
    if compared and background is None:
        advice = 'write "dog; grass; sky", add --background, or take --picture=similarity'
        check_several(names, "--classes", advice)
    templates = read_templates(_TEMPLATES.value, "--templates")
    photo = read_image(paths[0])
    model = load_named(_MODEL.value, _DTYPE.value)
    picture, segmentation = draw_picture(
        model,
        photo,
        names,
        _PICTURE.value,
        lambda image, classes: model.segment(
            image, classes, _PROTOCOL.value, templates, background, _BATCH.value
        ),
    )
    if segmentation is not None and _LABELS.value:
        write_picture(segmentation.mask(), _LABELS.value)
    write_picture(picture, _OUTPUT.value)
    print(_OUTPUT.value)


def _background(text: str) -> float | tuple[str, ...] | None:
    from dinotxt_jax.data.texts import read_names

    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        return read_names(text, "--background")


def main() -> None:
    """The command."""
    cli.run_with_paths(_body)


if __name__ == "__main__":
    main()
