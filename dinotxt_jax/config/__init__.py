"""Every setting of the project: frozen dataclasses, and the one place where values are checked.

A file in `configs/` returns `to_config_dict(Config(...))`; `from_dict` turns that back into the
dataclass that everything else takes; `--config.KEY=VALUE` changes it (`overrides`). `check` refuses
a value outside of the range or choices that stand next to the definition of its setting, and
settings that cannot be combined. docs/configuration.md lists all settings
(`python -m dinotxt_jax.config`).
"""

from dinotxt_jax.config.check import check
from dinotxt_jax.config.checking import flatten, from_dict, to_config_dict
from dinotxt_jax.config.data import DataConfig, TokenizerConfig, check_image_size
from dinotxt_jax.config.evaluation import EvaluationConfig, SegmentationConfig, TaskConfig
from dinotxt_jax.config.training import (
    DTYPE_NAMES,
    CheckpointConfig,
    Config,
    HeadTrainingConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    PrecisionConfig,
    TextTrainingConfig,
)

__all__ = [
    "DTYPE_NAMES",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "HeadTrainingConfig",
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
