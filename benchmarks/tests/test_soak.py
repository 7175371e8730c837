"""The verdict of a long run, from samples of free device memory and of the process's memory."""

import pytest
from soak import judge

MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "resident", "flat"),
    [
        ([100] * 40, [50] * 40, True),
        # Caches fill at the beginning.
        ([110, 105, 100, *[100] * 37], [20, 30, 40, *[50] * 37], True),
        # A driver's granule, and noise of the host.
        ([100] * 20 + [98] * 20, [50, 54] * 20, True),
        # A leak on the device, a late one too; one that was given back again is none less.
        ([100 - n for n in range(40)], [50] * 40, False),
        ([100] * 39 + [97], [50] * 40, False),
        ([100] * 20 + [90] + [100] * 19, [50] * 40, False),
        # A leak on the host, a single sample apart.
        ([100] * 40, [50 + n for n in range(40)], False),
        ([100] * 40, [50] * 39 + [500], True),
    ],
)
def test_verdicts(free: list[int], resident: list[int], flat: bool) -> None:
    found = judge([n * MIB for n in free], [n * MIB for n in resident])
    assert found["flat"] == flat
    assert (found["free"][0], found["resident"][-1]) == (free[0] * MIB, resident[-1] * MIB)


def test_growth_is_told_in_bytes() -> None:
    found = judge([100 * MIB] * 20 + [95 * MIB] * 20, [n * MIB for n in range(40)])
    assert found["device_growth"] == 5 * MIB
    # The median of the last quarter less that of the second.
    assert found["host_growth"] == 20 * MIB


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_samples(count: int) -> None:
    assert judge([7] * count, [9] * count)["flat"]
