"""Writes image descriptors or text features as Parquet or npz, or embeds a pool for curation.

    python -m dinotxt_jax.embed IMAGE or FOLDER [...] --model=DIR --output=FILE.parquet
    python -m dinotxt_jax.embed --texts=FILE.txt --model=DIR --output=FILE.npz
    python -m dinotxt_jax.embed --config=FILE --model=DIR --output=FOLDER

Vectors are L2-normalised, so that the dot product of an image and a text is the cosine
similarity. Columns, or arrays: `name` (image path, or text) and `embedding`. Images that cannot
be read are reported and skipped. Parquet needs pip install 'dinotxt_jax[parquet]'.

With --config, FOLDER gets the backbone's class token of every image in --config.data, for python -m
dinotxt_jax.curate (docs/curation_images.md); after an interruption, run the same command again.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.cli_flags import define_config
from dinotxt_jax.config import DTYPE_NAMES, CurationConfig
from dinotxt_jax.errors import UserError

_MODEL = flags.DEFINE_string("model", None, cli.MODEL_HELP, required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "FILE.parquet or FILE.npz, or a folder with --config.", required=True
)
_CONFIG = define_config(
    "config", CurationConfig, "File with get_config(): the pool to embed.", required=False
)
cli.define_process_flags()
_TEXTS = flags.DEFINE_string("texts", "", "Text file with one text per line, instead of images.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images, or texts, per batch.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 8, "Decoding threads.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPE_NAMES, "float32 or bfloat16.")


def _body(paths: Sequence[str]) -> None:
    from dinotxt_jax import sharding
    from dinotxt_jax.data.file_lists import image_files
    from dinotxt_jax.data.texts import read_list
    from dinotxt_jax.hub.fetched import load_named
    from dinotxt_jax.inference.embeddings import embed_lines, embedded_files, new_embeddings
    from dinotxt_jax.runtime import processes
    from dinotxt_jax.storage.addresses import to_output

    if _CONFIG.value is not None:
        _embed_pool(paths)
        return
    if processes.several():
        raise UserError(
            "several processes embed files, expected one; start it once, with --num_processes=1, "
            "or embed a pool with --config."
        )
    if bool(paths) == bool(_TEXTS.value):
        inputs = "both images and --texts are" if paths else "neither images nor --texts are"
        raise UserError(f"{inputs} given, expected either images or --texts; see --help.")
    files = image_files(paths) if paths else []
    texts = read_list(_TEXTS.value, "--texts") if _TEXTS.value else ()
    with new_embeddings(to_output(_OUTPUT.value, "--output")) as write:
        model = load_named(_MODEL.value, _DTYPE.value, sharding.make_mesh())
        if texts:
            embed_lines(model, texts, write, _BATCH.value)
        else:
            for paths_in_batch, rows in embedded_files(model, files, _BATCH.value, _THREADS.value):
                write([str(file) for file in paths_in_batch], rows)
    print(_OUTPUT.value)


def _embed_pool(paths: Sequence[str]) -> None:
    from dinotxt_jax.curation.embed_pool import embed_pool
    from dinotxt_jax.hub.fetched import local_model
    from dinotxt_jax.runtime import processes
    from dinotxt_jax.storage.addresses import to_output

    if paths or _TEXTS.value:
        raise UserError(
            "--config and images or texts are given, expected only one of them; --config.data "
            "names the images of a pool."
        )
    folder = to_output(_OUTPUT.value, "--output")
    model = str(local_model(_MODEL.value))
    result = embed_pool(_CONFIG.value, model, folder, _BATCH.value, _DTYPE.value)
    if processes.is_first():
        print(result)


def main() -> None:
    """The command."""
    cli.run_with_paths(_body, "files are written when complete; a pool continues when run again")


if __name__ == "__main__":
    main()
