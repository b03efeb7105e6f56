"""How verified candidates stand to each other, with the noise of what was measured of them."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from search.domain.result import Standing
from search.standing import VerifiedFigures, accuracy_ci95, compare_verified


def verified(
    name: str, latency_ms: float | None, accuracy: float | None, *, width: float | None = 0.02, images: int = 1000
) -> VerifiedFigures:
    return VerifiedFigures(
        candidate_id=name,
        latency_ms=latency_ms,
        latency_ci95_ms=None
        if latency_ms is None or width is None
        else (latency_ms * (1 - width), latency_ms * (1 + width)),
        accuracy=accuracy,
        accuracy_ci95=None if accuracy is None else accuracy_ci95(accuracy, images),
    )


@pytest.mark.parametrize(("right", "images"), [(0, 10), (10, 10), (1, 1), (180, 200), (9_123, 10_000)])
def test_the_interval_of_an_accuracy_is_that_of_a_share(right: int, images: int) -> None:
    expected = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert accuracy_ci95(right / images, images) == pytest.approx((expected.low, expected.high), abs=1e-7)


@pytest.mark.parametrize(("accuracy", "images"), [(0.5, 0), (1.1, 10), (float("nan"), 10)])
def test_no_accuracy(accuracy: float, images: int) -> None:
    with pytest.raises(ValueError, match="accuracy of"):
        accuracy_ci95(accuracy, images)


def test_a_candidate_leaves_the_front_only_beyond_noise() -> None:
    found = compare_verified(
        [
            verified("fast", 1.0, 0.80),
            verified("good", 2.0, 0.90),
            verified("almost", 2.03, 0.899),
            verified("slower", 3.0, 0.895),
            verified("worse", 3.0, 0.80),
        ]
    )
    assert [item.standing for item in found] == [
        Standing.FRONT,
        Standing.FRONT,
        Standing.WITHIN_NOISE,
        Standing.WITHIN_NOISE,
        Standing.DOMINATED,
    ]
    assert [item.tied_with for item in found] == [(), ("almost",), ("good",), (), ()]


def test_what_is_not_known_is_compared_with_none() -> None:
    found = compare_verified(
        [
            verified("known", 2.0, 0.9),
            verified("no latency", None, 0.95),
            verified("no interval", 1.0, 0.95, width=None),
            verified("untrained", 1.0, None),
        ]
    )
    assert [(item.standing, item.tied_with) for item in found] == [(Standing.FRONT, ()), *[(None, ())] * 3]
    assert compare_verified([]) == ()


def test_more_images_tell_candidates_apart() -> None:
    few, many = (
        compare_verified([verified("a", 2.0, 0.90, images=n), verified("b", 2.01, 0.89, images=n)])
        for n in (1_000, 100_000)
    )
    assert few[1].tied_with == ("a",)
    assert many[1].tied_with == ()
    assert many[1].standing is Standing.WITHIN_NOISE  # the latencies overlap still
