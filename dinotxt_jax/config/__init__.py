"""All project settings: frozen dataclasses, and the only place where values are checked.

A file in `configs/` returns `to_config_dict(Config(...))`; `from_dict` converts the result back to
the dataclass that all other code uses; `--config.KEY=VALUE` changes a setting (`overrides`).
`check` rejects values outside the range or choices declared with each setting, and settings that
cannot be combined. docs/configuration.md lists all settings (`python -m dinotxt_jax.config`).
"""

from dinotxt_jax.config.check import check
from dinotxt_jax.config.checking import flatten, from_dict, to_config_dict
from dinotxt_jax.config.curation import CurationConfig
from dinotxt_jax.config.data import DataConfig, TokenizerConfig, check_image_size
from dinotxt_jax.config.evaluation import EvaluationConfig, SegmentationConfig, TaskConfig
from dinotxt_jax.config.ingestion import IngestionConfig
from dinotxt_jax.config.recipe import (
    HeadTrainingConfig,
    LossConfig,
    OptimizerConfig,
    TextTrainingConfig,
)
from dinotxt_jax.config.training import (
    DTYPE_NAMES,
    CheckpointConfig,
    Config,
    MeshConfig,
    PrecisionConfig,
)

__all__ = [
    "DTYPE_NAMES",
    "CheckpointConfig",
    "Config",
    "CurationConfig",
    "DataConfig",
    "EvaluationConfig",
    "HeadTrainingConfig",
    "IngestionConfig",
    "LossConfig",
    "MeshConfig",
    "OptimizerConfig",
    "PrecisionConfig",
    "SegmentationConfig",
    "TaskConfig",
    "TextTrainingConfig",
    "TokenizerConfig",
    "check",
    "check_image_size",
    "flatten",
    "from_dict",
    "to_config_dict",
]
