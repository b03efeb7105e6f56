"""A search as the user writes it, by its parts; `search.SearchConfig` is the whole."""

from search.domain.config.method import (
    AccuracyConfig,
    DataDifficulty,
    Estimator,
    MappingConfig,
    Method,
    MethodConfig,
    RateSource,
)
from search.domain.config.model_and_data import (
    DIGITS,
    WORKER_PREFIX,
    DatasetConfig,
    ImageFit,
    ModelConfig,
    is_on_worker,
)
from search.domain.config.search import TOP1, MeasuringConfig, MeasuringStrategy, SearchConfig, parse_config
from search.domain.config.space import ChannelsConfig, DepthConfig, ResolutionConfig, SpaceConfig, WeightsConfig
from search.domain.config.training import InitialWeights, Regime, SelectionConfig, TrainingConfig

__all__ = [
    "DIGITS",
    "TOP1",
    "WORKER_PREFIX",
    "AccuracyConfig",
    "ChannelsConfig",
    "DataDifficulty",
    "DatasetConfig",
    "DepthConfig",
    "Estimator",
    "ImageFit",
    "InitialWeights",
    "MappingConfig",
    "MeasuringConfig",
    "MeasuringStrategy",
    "Method",
    "MethodConfig",
    "ModelConfig",
    "RateSource",
    "Regime",
    "ResolutionConfig",
    "SearchConfig",
    "SelectionConfig",
    "SpaceConfig",
    "TrainingConfig",
    "WeightsConfig",
    "is_on_worker",
    "parse_config",
]
