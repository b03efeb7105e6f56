"""Settings of methods and estimators that contradict each other are refused where the config is read."""

from __future__ import annotations

from typing import Any

import pytest

from device_agent.contracts import ContractError
from search.domain.config import Estimator, parse_config


def config(**changes: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "model": {"architecture": "small_cnn"},
        "dataset": {"name": "digits"},
        "space": {"channels": {}},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mapping": {}}, "mapping is for the methods rule_mapping and policy_gradient, not for jcw"),
        ({"method": {"name": "rule_mapping"}}, "rule_mapping chooses how weights are pruned: give space.weights"),
        (
            {"method": {"name": "policy_gradient"}, "mapping": {"targets": [0.5, 1.5]}},
            r"mapping.targets \(0.5, 1.5\) must be",
        ),
        ({"method": {"rank": 2}}, "rank 2 must be 1..4, and belongs to 'three_dimensions', not to 'jcw'"),
        ({"method": {"name": "three_dimensions", "rank": 5}}, "rank 5 must be 1..4"),
        ({"method": {"reconstruct": True}}, "reconstruct belongs to 'exact' and to 'seed_with: exact', not to 'jcw'"),
        ({"method": {"name": "aacp", "reproduce_reference": True}}, "reproduce_reference is there for 'jcw'"),
        (
            {"method": {"reproduce_reference": True}, "constraints": [{"metric": "error", "max": 0.5}]},
            "know no constraints, but there are error <= 0.5",
        ),
        (
            {
                "method": {"reproduce_reference": True},
                "space": {"weights": {"schemes": ["group:4x1", "unstructured"]}},
            },
            "know one scheme, but there are group:4x1, unstructured",
        ),
        (
            {"method": {"reproduce_reference": True, "seed_with": "exact"}},
            "know no seeds, but there is seed_with 'exact'",
        ),
        (
            {
                "method": {"reproduce_reference": True},
                "objectives": [{"metric": "loss"}, {"metric": "latency_ms"}, {"metric": "macs"}],
            },
            "know two objectives, .* loss, latency_ms, macs",
        ),
        (
            {"accuracy": {"estimator": "supernet"}, "method": {"name": "random"}},
            "the method 'random' has none: use jcw",
        ),
        ({"method": {"name": "random", "seed_with": "exact"}}, "'exact' does not go with method 'random'"),
        ({"method": {"name": "jcw", "seed_with": "aacp"}}, "only 'exact' can seed"),
        ({"accuracy": {"reevaluate_top": -1}}, "reevaluate_top -1"),
        ({"objectives": [{"metric": "loss"}]}, "must be error or loss, with constraints"),
        ({"objectives": [{"metric": "macs"}], "constraints": [{"metric": "macs", "max": 9}]}, "must be error or loss"),
        (
            {"objectives": [{"metric": "loss"}], "constraints": [{"metric": "macs", "max": 9}]},
            "'jcw' looks for a front over latency",
        ),
        ({"accuracy": {"schedule_factor": 0.5}}, "accuracy.schedule_factor belongs to the estimator 'supernet'"),
        ({"accuracy": {"estimator": "supernet", "schedule_factor": 1.5}}, "schedule_factor 1.5"),
        ({"accuracy": {"estimator": "superned"}}, "superned"),
        ({"measuring": {"strategy": "activ"}}, "activ"),
        ({"measuring": {"round_generations": 3}}, "round_generations 3 must be at least 1, and belongs to .* 'active'"),
        ({"measuring": {"strategy": "active", "round_generations": 0}}, "round_generations 0 must be at least 1"),
        (
            {"measuring": {"strategy": "active"}, "method": {"name": "exact"}},
            "the method 'exact' works on the latencies of one table: use jcw, nsga2, random",
        ),
        (
            {"measuring": {"strategy": "active"}, "method": {"name": "nsga2", "seed_with": "exact"}},
            "the method 'nsga2' with seed_with 'exact' works on",
        ),
        (
            {
                "measuring": {"strategy": "active"},
                "objectives": [{"metric": "loss"}, {"metric": "latency_ms"}, {"metric": "macs"}],
            },
            "the objectives loss, latency_ms, macs are no front of accuracy and latency",
        ),
        ({"measuring": {"strategy": "active"}, "latency_from": "s"}, "latency_from takes a table as it is"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ContractError, match=named):
        parse_config(config(**changes))


def test_the_published_pipeline_is_a_config() -> None:
    parsed = parse_config(
        config(
            method={"name": "jcw", "reproduce_reference": True, "population": 64, "generations": 128},
            accuracy={"estimator": "supernet"},
            training={"regime": "jcw", "initial_weights": "fresh", "batch_size": 512},
        )
    )
    assert parsed.accuracy.estimator is Estimator.SUPERNET
    assert parsed.training.schedule_factor == 1.0


@pytest.mark.parametrize(
    ("changes", "excludes"),
    [
        ({}, True),
        ({"constraints": [{"metric": "latency_ms", "max": 1.0}]}, True),
        ({"objectives": [{"metric": "error"}, {"metric": "model_bytes"}]}, False),
        ({"constraints": [{"metric": "macs", "max": 9}]}, False),
        ({"space": {"weights": {"exclude_unprofitable": False}}}, False),
        ({"space": {"channels": {}}}, False),
        ({"method": {"name": "jcw", "reproduce_reference": True}}, False),
        ({"measuring": {"strategy": "active"}}, False),
        ({"measuring": {"strategy": "active"}, "devices": ["a", "b"]}, False),
    ],
)
def test_what_does_not_pay_is_left_out_only_where_nothing_else_counts(changes: dict[str, Any], excludes: bool) -> None:
    assert parse_config(config(**{"space": {"weights": {}}, **changes})).excludes_unprofitable is excludes
