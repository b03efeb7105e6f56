"""The tables of the documentation come out of the figures file, also of one that lacks rows."""

from __future__ import annotations

from typing import Any

from bench.kernel_tables import document


def layer(name: str, scheme: str, density: float, share: float, **changes: Any) -> dict[str, Any]:
    row = {
        "layer": name,
        "scheme": scheme,
        "density": density,
        "fraction_of_peak": share,
        "algorithm": "direct",
        "direct_fraction_of_peak": None,
        "speedup_vs_xnnpack": 2.345,
        "speedup_vs_ncnn": None,
        "bound_with_writes": 0.9,
        "of_ideal_speedup": 0.95,
        "median_us": 12.34,
    }
    return row | changes


def test_every_row_finds_its_table() -> None:
    result = {
        "peak_gflops": 188.4,
        "isa": "avx512",
        "compiler": "gcc 12",
        "layers": [
            layer("64@8", "dense", 1.0, 1.37, algorithm="winograd", direct_fraction_of_peak=0.85),
            layer("64@8", "group", 0.3, 0.79, speedup_vs_xnnpack=12.34),
            layer("64@8", "pattern", 4 / 9, 0.82),
            layer("1x1 512@14", "dense", 1.0, 0.9),
            layer("1x1 512@14", "group", 0.1, 0.83),
            layer("dw 512@14", "dense", 1.0, 0.43),
        ],
        "other_layers": [
            {"layer": "avgpool 64@8", "median_us": 0.1, "speedup_vs_xnnpack": 4.1, "speedup_vs_ncnn": 20.0}
        ],
        "networks": [
            {
                "network": "resnet18",
                "density": 0.3,
                "median_ms": 8.765,
                "speedup_vs_xnnpack": 4.16,
                "speedup_vs_ncnn": 3.63,
                "prepare_s": 0.4,
                "relative_error": 9e-7,
                "memory_bytes": 26 << 20,
                "native_memory": {"rss_bytes": 28 << 20, "peak_bytes": 30 << 20},
                "xnnpack_memory": None,
            }
        ],
        "threads": [
            {
                "density": 1.0,
                "one_thread_minimum_ms": 19.6,
                "minimum_ms": 10.0,
                "speedup": 1.96,
                "median_speedup": 1.9,
            }
        ],
    }
    lines = list(document(result))
    assert lines[0] == "peak: 188 GFLOP/s; avx512, gcc 12"
    assert "| 64@8 | 85, 137 W |  | 79 |  |  | 90 |  | 2.35 |  | 12.3 |  |  |  |  |  |" in lines
    assert "| 64@8 |  |  |  |  |  |  |  | 82 | 95 | 2.35 |" in lines
    assert "| 1x1 512@14 | 90 |  |  |  | 83 |  | 90 | 2.35 |  |  |  | 2.35 |  |  |  |" in lines
    assert "| dw 512@14 | 12.3 | 43 | 2.35 |  |" in lines
    assert "| avgpool 64@8 | 0.1 |  | 4.10 | 20.0 |" in lines
    assert "| resnet18 | 0.3 | 8.77 | 4.16 | 3.63 | 0.40 | 9e-07 | 26.0 | 28.0 |  | 30.0 |  |" in lines
    assert "| 1 | 19.60 | 10.00 | 1.96 | 1.90 |" in lines
