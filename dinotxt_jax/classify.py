"""Classifies images among class names that you give.

    python -m dinotxt_jax.classify IMAGE [IMAGE or FOLDER ...] --model=DIR --classes "dog; cat"

Prints one line per image: the path, and the most probable classes with probabilities.
--classes may also name a text file with one class per line, or a list included in the project
(imagenet1k, ...); --output=FILE.csv writes all probabilities. Images that cannot be read
are reported and skipped.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.config import DTYPE_NAMES

_MODEL = flags.DEFINE_string("model", None, cli.MODEL_HELP, required=True)
_CLASSES = flags.DEFINE_string(
    "classes", None, 'Names between ";", a text file, or a list.', required=True
)
_TEMPLATES = flags.DEFINE_string("templates", "openai_80", "A list, a text file, or one template.")
_TOP = flags.DEFINE_integer("top", 3, "Number of classes to print.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", "", "CSV file to write, with one row per image and one column per class."
)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Images per batch.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 8, "Decoding threads.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPE_NAMES, "float32 or bfloat16.")


def _body(paths: Sequence[str]) -> None:
    from dinotxt_jax import sharding
    from dinotxt_jax.data.file_lists import image_files
    from dinotxt_jax.data.texts import check_several, read_names, read_templates
    from dinotxt_jax.hub.fetched import load_named
    from dinotxt_jax.inference.embeddings import embedded_files
    from dinotxt_jax.storage.addresses import to_output
    from dinotxt_jax.storage.files import check_no_folder, new_file

    files = image_files(paths)
    names = read_names(_CLASSES.value, "--classes")
    check_several(names, "--classes", 'write "dog; cat; horse", or name a text file or a list')
    templates = read_templates(_TEMPLATES.value, "--templates")
    output = to_output(_OUTPUT.value, "--output") if _OUTPUT.value else None
    if output is not None:
        check_no_folder(output)
    model = load_named(_MODEL.value, _DTYPE.value, sharding.make_mesh())
    rows: list[list[object]] = []
    parts = embedded_files(model, files, _BATCH.value, _THREADS.value, "classifying")
    for paths_in_batch, descriptors in parts:
        result = model.classify_descriptors(descriptors, names, templates)
        for file, best in zip(paths_in_batch, result.top(_TOP.value), strict=True):
            summary = ", ".join(f"{name} {100 * probability:.1f}%" for name, probability in best)
            print(f"{file}: {summary}")
        values = result.probabilities.tolist()
        rows += [
            [file, *row_values] for file, row_values in zip(paths_in_batch, values, strict=True)
        ]
    if output is not None:
        with new_file(output) as partial, partial.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", *names])
            writer.writerows(rows)


def main() -> None:
    """The command."""
    cli.run_with_paths(_body)


if __name__ == "__main__":
    main()
