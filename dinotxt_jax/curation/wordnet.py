"""Entries from wordnets, through the package `wn`, which keeps its data in ~/.wn_data."""

from __future__ import annotations

from collections.abc import Sequence

from dinotxt_jax.errors import UserError


def wordnet_names(lexicons: Sequence[str]) -> dict[str, list[str]]:
    """Returns the name of each synset (the first of its words), by language.

    Args:
        lexicons: specifiers such as oewn:2024.

    Raises:
        UserError: the extra `curation` is not installed, or a lexicon is not stored.
    """
    if not lexicons:
        return {}
    try:
        import wn
    except ImportError as error:
        raise UserError(
            "config.metadata.wordnet needs the package wn, which is not installed; run pip install "
            "'dinotxt_jax[curation]'."
        ) from error
    names: dict[str, list[str]] = {}
    for specifier in lexicons:
        try:
            lexicon = wn.Wordnet(specifier, expand="")
        except wn.Error as error:
            raise UserError(
                f"config.metadata.wordnet names {specifier!r}, which is not stored in "
                f"{wn.config.data_directory}, expected a lexicon with its version; run python -m "
                f"wn download {specifier}, or correct it."
            ) from error
        language = lexicon.lexicons()[0].language
        lemmas = (synset.lemmas() for synset in lexicon.synsets())
        names.setdefault(language, []).extend(words[0] for words in lemmas if words)
    return names
