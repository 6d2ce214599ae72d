"""Loads the tokenizer that a model directory describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import AddressLike, to_address
from dinotxt_jax.storage.downloads import check_sha256
from dinotxt_jax.tokenizers.base import Tokenizer
from dinotxt_jax.tokenizers.clip import CLIP_VOCABULARY_FILE, ClipTokenizer
from dinotxt_jax.tokenizers.trained import TrainedTokenizer


def load_tokenizer(spec: Mapping[str, Any], directory: AddressLike) -> Tokenizer:
    """Loads the tokenizer that `spec()` described and `save(directory)` wrote.

    If the directory has no CLIP vocabulary, it comes from the cache or the network.

    Raises:
        UserError: unknown kind, or a file that is missing or differs from the spec.
    """
    kind = spec.get("kind")
    needed = {"clip": ("context_length",), "bpe": ("context_length", "sha256")}.get(kind or "", ())
    types = {"context_length": int, "sha256": str}
    if missing := [name for name in needed if type(spec.get(name)) is not types[name]]:
        raise UserError(
            f"the description of the tokenizer in {directory} lacks {' and '.join(missing)}; "
            "restore the file, or train or convert the model again."
        )
    if kind == "clip":
        path = to_address(directory) / CLIP_VOCABULARY_FILE
        return ClipTokenizer(path if path.exists() else None, spec["context_length"])
    if kind != "bpe":
        raise UserError(f"tokenizer kind {kind!r} is unknown; model.json must say 'clip' or 'bpe'.")
    path = to_address(directory) / TrainedTokenizer.file
    if not path.exists():
        raise UserError(f"{path} is missing; copy the whole model directory, or train it again.")
    check_sha256(path, spec["sha256"], "restore the file saved with the model")
    return TrainedTokenizer(path.read_bytes(), spec["context_length"])
