"""The floor: how long each stage would take if it only moved its bytes and did its operations at the machine's rate.

A floor is a lower bound, not an estimate. It counts what no implementation can leave out: every byte of input and
output once, from memory, and the arithmetic that the answer needs, in fp32. The measured time over the floor says how
much room is left; the stage is bound by whichever of bytes and operations takes longer. Data that is still in a cache
from the stage before can beat the bandwidth of memory: a ratio just below 1 is no error.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from centernet_trt.errors import InputError
from centernet_trt.evaluation.clock import Now
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.manifest import Manifest

# Of the arrays that the rates are measured with: larger than any cache, and large enough for the GEMM's full speed.
_COPY_BYTES = 256 << 20
_GEMM_SIDE = 1536


@dataclass(frozen=True)
class MachineRates:
    """Bytes a second (read and written together) and fp32 operations a second (a multiply-add is two)."""

    bytes_per_second: float
    operations_per_second: float
    source: str

    def __post_init__(self) -> None:
        if not (self.bytes_per_second > 0 and self.operations_per_second > 0):
            raise InputError(
                f"rates of {self.bytes_per_second} B/s and {self.operations_per_second} operations/s were given, "
                "positive numbers were expected"
            )

    def to_json(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class StageCost:
    """Bytes and operations that a stage cannot do without; `counted` says what they are."""

    bytes: int
    operations: int
    counted: str

    def floor(self, rates: MachineRates) -> float:
        """Seconds, at least: the longer of the two."""
        return max(self.bytes / rates.bytes_per_second, self.operations / rates.operations_per_second)

    def bound(self, rates: MachineRates) -> str:
        """`bytes` or `operations`: which takes longer."""
        memory = self.bytes / rates.bytes_per_second
        return "bytes" if memory >= self.operations / rates.operations_per_second else "operations"


def measure_rates(cores: int, rounds: int = 5, now: Now = time.perf_counter) -> MachineRates:
    """This machine's rates: the best of some copies, one slice a core, and of some fp32 matrix products (all cores)."""
    source, target = np.ones(_COPY_BYTES // 4, np.float32), np.empty(_COPY_BYTES // 4, np.float32)
    slices = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    left = np.ones((_GEMM_SIDE, _GEMM_SIDE), np.float32)
    product = np.empty_like(left)
    copies, products = [], []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(rounds + 1):  # the first touches the pages and starts the threads
            start = now()
            list(pool.map(lambda pair: np.copyto(*pair), slices))
            middle = now()
            np.matmul(left, left, out=product)
            copies.append(middle - start)
            products.append(now() - middle)
    return MachineRates(
        2 * _COPY_BYTES / min(copies[1:]),
        2 * _GEMM_SIDE**3 / min(products[1:]),
        f"measured in this run: NumPy copy of {_COPY_BYTES >> 20} MiB by {cores} threads, fp32 matrix product of "
        f"side {_GEMM_SIDE}, best of {rounds}",
    )


def faster(a: MachineRates, b: MachineRates) -> MachineRates:
    """The better of two measurements, rate by rate: whatever disturbs one of them can only make it slower."""
    bandwidth = max(a.bytes_per_second, b.bytes_per_second)
    return MachineRates(
        bandwidth, max(a.operations_per_second, b.operations_per_second), f"{a.source}, twice"
    )


def stage_costs(manifest: Manifest, placement: Placement, multiply_adds: int | None) -> dict[str, StageCost]:
    """What each stage of one image costs at least.

    Args:
        manifest: of the bundle: types of input and heads, size of the graph's weights.
        placement: of the image in the network input.
        multiply_adds: of the network at that input size; None where they were not counted, and only bytes are.
    """
    item = np.dtype(manifest.input.dtype).itemsize
    outputs = 3 * placement.height * placement.width
    inside = (placement.right - placement.left) * (placement.bottom - placement.top)
    # Bilinear sampling looks at four pixels of an output pixel, and no more than all there are.
    pixels = min(placement.source_width * placement.source_height, 4 * inside)
    cells = (placement.height // manifest.spec.stride) * (placement.width // manifest.spec.stride)
    heads = sum(head.channels * cells * np.dtype(head.dtype).itemsize for head in manifest.heads)
    heat = next(head for head in manifest.heads if head.name == manifest.spec.heads.heatmap.tensor)
    scores = heat.channels * cells
    arithmetic = "operations not counted" if multiply_adds is None else "two operations a multiply-add"
    return {
        "preprocess": StageCost(
            3 * pixels + outputs * item,
            8 * outputs,
            "source pixels read, tensor written; 6 operations to interpolate a value, 2 to normalise it",
        ),
        "network": StageCost(
            manifest.model.bytes + outputs * item + heads,
            2 * (multiply_adds or 0),
            f"weights and tensor read, heads written, nothing between; {arithmetic}",
        ),
        "decode": StageCost(
            scores * np.dtype(heat.dtype).itemsize, scores, "heatmap read once; one comparison a score"
        ),
    }
