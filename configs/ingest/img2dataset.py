"""Tars that img2dataset has written, reduced to 256 pixels, without exact duplicates.

    python -m dinotxt_jax.ingest --config=configs/ingest/img2dataset.py \\
        --config.data.path='data/cc12m/*.tar' --output=data/cc12m_256

docs/ingest.md describes the output.
"""

from dinotxt_jax.config import DataConfig, IngestionConfig, to_config_dict


def get_config():
    """Returns the config for ingesting web pairs."""
    return to_config_dict(
        IngestionConfig(
            data=DataConfig(source="webdataset", max_bad_fraction=0.05),
            resize=256,
            encoding="jpeg",
            deduplicate="pair",
        )
    )
