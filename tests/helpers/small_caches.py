"""Feature caches that are written in a second."""

from __future__ import annotations

from pathlib import Path

from dinotxt_jax.config import Config, DataConfig, PrecisionConfig
from dinotxt_jax.data.feature_cache import FeatureCache, cache_description
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.storage.model_directory import read_description


def config(backbone: Path, folder: Path, **changes: object) -> Config:
    """Returns a config with two random views of 20 drawn scenes."""
    settings: dict = {
        "backbone": str(backbone),
        "features": str(folder),
        "feature_views": 2,
        "data": DataConfig(num_scenes=20, image_size=56, threads=2, prefetch=8),
        "precision": PrecisionConfig(frozen="float32"),
    }
    return Config(**(settings | changes))


def open_cache(run: Config) -> FeatureCache:
    """Opens the cache for the training images of a run."""
    fingerprint = read_description(run.backbone).fingerprint
    source = open_source(run.data)
    expected = cache_description(run, run.data, source, run.feature_views, fingerprint)
    return FeatureCache(Path(run.features), expected)
