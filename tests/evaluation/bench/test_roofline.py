"""The lower bounds: costs by hand, rates of a clock that is known."""

from pathlib import Path

import pytest
from helpers.tiny_bundle import write_tiny_bundle

from centernet_trt.errors import InputError
from centernet_trt.evaluation.bench import roofline
from centernet_trt.evaluation.bench.roofline import (
    MachineRates,
    StageCost,
    faster,
    measure_rates,
    stage_costs,
)
from centernet_trt.runtime.geometry import place


def test_the_longer_of_bytes_and_operations_bounds() -> None:
    rates = MachineRates(10.0, 100.0, "given")
    memory = StageCost(50, 100, "")
    assert (memory.seconds(rates), memory.bound(rates)) == (5.0, "bytes")
    arithmetic = StageCost(10, 1000, "")
    assert (arithmetic.seconds(rates), arithmetic.bound(rates)) == (10.0, "operations")
    with pytest.raises(InputError, match="expected positive numbers"):
        MachineRates(0, 1, "given")


def test_costs_of_a_tiny_network_by_hand(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    manifest = bundle.manifest
    placement = place(manifest.spec.input, 96, 60)  # keep_res, pad 32: 128 x 64
    costs = stage_costs(manifest, placement, multiply_adds=1000)
    assert costs["preprocess"].bytes == 3 * 96 * 60 + 3 * 128 * 64 * 4
    assert costs["preprocess"].operations == 8 * 3 * 128 * 64
    cells = (128 // 4) * (64 // 4)
    assert costs["network"].bytes == manifest.model.bytes + 3 * 128 * 64 * 4 + 6 * cells * 4
    assert costs["network"].operations == 2000
    assert (costs["decode"].bytes, costs["decode"].operations) == (2 * cells * 4, 2 * cells)
    uncounted = stage_costs(manifest, placement, None)["network"]
    assert uncounted.operations == 0
    assert "not counted" in uncounted.counted


def test_rates_are_the_best_round_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_COPY_BYTES", 4096)
    monkeypatch.setattr(roofline, "_GEMM_SIDE", 8)
    # Each round reads the clock three times: copy 1, 4, 2 s and product 1, 3, 5 s.
    readings = iter([0, 1, 2, 0, 4, 7, 0, 2, 7])
    rates = measure_rates(2, rounds=2, now=lambda: float(next(readings)))
    assert rates.bytes_per_second == 2 * 4096 / 2
    assert rates.operations_per_second == 2 * 8**3 / 3
    assert "2 threads" in rates.source


def test_the_faster_of_two_measurements_counts() -> None:
    found = faster(MachineRates(1.0, 20.0, "measured"), MachineRates(2.0, 10.0, "measured"))
    assert found == MachineRates(2.0, 20.0, "measured, twice")
