"""Draws what free text finds in an image, patch by patch.

    python -m dinotxt_jax.segment IMAGE --model=DIR --classes "dog; grass; sky" --output=FILE.png
    python -m dinotxt_jax.segment IMAGE --model=DIR --classes "a dog's ear" --picture=similarity \\
        --output=FILE.png

Every pixel gets the class whose text is most similar (--picture=overlay). --classes may also name a
text file with one class a line, or a list that comes with the project (ade20k_150, voc_20, ...).
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.config import DTYPE_NAMES
from dinotxt_jax.config.evaluation import PROTOCOLS
from dinotxt_jax.errors import UserError

_MODEL = flags.DEFINE_string("model", None, "Model directory.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The picture to write, PNG or JPEG.", required=True)
_CLASSES = flags.DEFINE_string("classes", "", 'Names between ";", a text file, or a list.')
_PICTURE = flags.DEFINE_string(
    "picture", "overlay", "overlay, heat (all scores), similarity (of one phrase) or pca (patches)."
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol", "slide", PROTOCOLS, "slide, whole or highres (for overlay, heat)."
)
_TEMPLATES = flags.DEFINE_string("templates", "openai_80", "A list, a text file, or one template.")
_BACKGROUND = flags.DEFINE_string(
    "background", "", "A score below which a pixel is background, or words that stand for it."
)
_LABELS = flags.DEFINE_string("labels", "", "Also write the class indices, as an 8-bit PNG.")
_BATCH = flags.DEFINE_integer("batch_size", 8, "Windows encoded at once.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPE_NAMES, "float32 or bfloat16.")


def _body(paths: Sequence[str]) -> None:
    from dinotxt_jax.data.texts import read_names
    from dinotxt_jax.inference import load
    from dinotxt_jax.inference.pictures import check_file, draw, write

    if len(paths) != 1:
        raise UserError(f"{len(paths)} images are named, expected one; see --help.")
    check_file(_OUTPUT.value)
    if _LABELS.value:
        check_file(_LABELS.value, (".png",))
    names = read_names(_CLASSES.value, "--classes") if _CLASSES.value else ()
    background = _background(_BACKGROUND.value)
    model = load(_MODEL.value, _DTYPE.value)
    picture, found = draw(
        model,
        paths[0],
        names,
        _PICTURE.value,
        lambda image, classes: model.segment(
            image, classes, _PROTOCOL.value, _TEMPLATES.value, background, _BATCH.value
        ),
    )
    if _LABELS.value:
        if found is None:
            raise UserError(f"--picture={_PICTURE.value} has no labels; leave out --labels.")
        write(found.mask(), _LABELS.value)
    write(picture, _OUTPUT.value)
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
