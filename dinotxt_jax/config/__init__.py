"""Every setting of the project: frozen dataclasses, and the one place where a key is checked.

A file in `configs/` returns `to_config_dict(Config(...))`; `--config.KEY=VALUE` changes it;
`from_dict` turns it back into the dataclass that everything else takes. A key that no dataclass
has, or a value of another type, is a `UserError`.
"""

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
    "check_image_size",
    "flatten",
    "from_dict",
    "to_config_dict",
]
