"""The table of tokenizers, and the one that a model directory describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import AddressLike, to_address
from dinotxt_jax.tokenizers.base import Tokenizer
from dinotxt_jax.tokenizers.clip import ClipTokenizer
from dinotxt_jax.tokenizers.sentence_pieces import SentencePieceTokenizer
from dinotxt_jax.tokenizers.trained import TrainedTokenizer

TOKENIZERS: dict[str, type[Tokenizer]] = {
    tokenizer.kind: tokenizer
    for tokenizer in (ClipTokenizer, TrainedTokenizer, SentencePieceTokenizer)
}
"""All tokenizers, by the kind that `model.json` and `config.tokenizer.kind` name."""


def load_tokenizer(spec: Mapping[str, Any], directory: AddressLike) -> Tokenizer:
    """Loads the tokenizer that `spec()` described and `save(directory)` wrote.

    If the directory has no CLIP vocabulary, it comes from the cache or the network.

    Raises:
        UserError: unknown kind, or a file that is missing or differs from the spec.
    """
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in TOKENIZERS:
        raise UserError(
            f"tokenizer kind {kind!r} is unknown; model.json must say one of "
            f"{', '.join(TOKENIZERS)}."
        )
    tokenizer = TOKENIZERS[kind].load(spec, to_address(directory))
    actual = tokenizer.spec()
    for name, value in spec.items():
        if actual.get(name) != value:
            raise UserError(
                f"the description of the tokenizer in {directory} has {name} {value!r}, but its "
                f"file gives {actual.get(name)!r}; restore both, or train or convert the model "
                "again."
            )
    return tokenizer
