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
from search.domain.config.model_and_data import DatasetConfig, ModelConfig
from search.domain.config.search import MeasuringConfig, MeasuringStrategy, SearchConfig, parse_config
from search.domain.config.space import ChannelsConfig, DepthConfig, ResolutionConfig, SpaceConfig, WeightsConfig
from search.domain.config.training import InitialWeights, Regime, SelectionConfig, TrainingConfig

__all__ = [
    "AccuracyConfig",
    "ChannelsConfig",
    "DataDifficulty",
    "DatasetConfig",
    "DepthConfig",
    "Estimator",
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
    "parse_config",
]
