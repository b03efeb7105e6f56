"""A candidate that cannot be judged is a failure with a reason; what no candidate can cause comes through."""

from __future__ import annotations

import math

import pytest

from search.accuracy.estimator import estimate_or_failure
from search.errors import SearchError
from search.evaluation import AccuracyEstimate


def raising(error: Exception) -> AccuracyEstimate:
    raise error


@pytest.mark.parametrize("error", [SearchError("diverged at step 3"), RuntimeError("diverged at step 3")])
def test_errors_of_one_candidate_are_its_failure(error: Exception) -> None:
    found = estimate_or_failure(lambda: raising(error))
    assert found.failure == f"{type(error).__name__}: diverged at step 3"
    assert math.isnan(found.loss)


def test_outputs_that_are_no_numbers_are_a_failure() -> None:
    found = estimate_or_failure(lambda: AccuracyEstimate(accuracy=0.1, loss=math.inf))
    assert found.failure is not None
    assert "loss is inf" in found.failure


def test_what_no_candidate_causes_comes_through() -> None:
    with pytest.raises(OSError, match="disk"):
        estimate_or_failure(lambda: raising(OSError("disk full")))
