"""Names the language of a caption, for metadata with a list for each language."""

from __future__ import annotations

from collections.abc import Sequence

from dinotxt_jax.errors import UserError

OTHER_LANGUAGE = "other"


class LanguageIdentifier:
    """Identifies languages with py3langid, about 20,000 captions/s.

    Args:
        languages: languages that have a list; all others are `OTHER_LANGUAGE`.

    Raises:
        UserError: the extra `curation` is not installed, or a language is unknown to py3langid.
    """

    def __init__(self, languages: Sequence[str]):
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as error:
            raise UserError(
                "metadata of several languages needs py3langid, which is not installed; run pip "
                "install 'dinotxt_jax[curation]'."
            ) from error
        self._model = LanguageIdentifier.from_model_file(MODEL_FILE)
        self._languages = frozenset(languages)
        known = set(self._model.labels)
        for language in sorted(self._languages - known - {OTHER_LANGUAGE}):
            raise UserError(
                f"the metadata has a list for the language {language!r}, expected one of "
                f"{', '.join(sorted(known))}, which can be identified; remove the list."
            )

    def __call__(self, caption: str) -> str:
        """Returns the language code of a caption, or `OTHER_LANGUAGE`."""
        language = self._model.classify(caption)[0]
        return language if language in self._languages else OTHER_LANGUAGE
