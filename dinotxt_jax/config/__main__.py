"""Prints docs/configuration.md, the table with all settings.

python -m dinotxt_jax.config > docs/configuration.md
"""

from dinotxt_jax.config.document import document

if __name__ == "__main__":
    print(document(), end="")
