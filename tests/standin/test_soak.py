"""A long run: nothing grows."""

import gc
from pathlib import Path

import pytest
from helpers.detector_parts import gpu_backend
from helpers.standin_pipeline import BINDINGS, counts, pictures, same, tiny, world
from helpers.standin_session import ON_STANDIN

from centernet_trt.runtime import Detector
from centernet_trt.runtime.cuda.binding import BindingName

pytestmark = ON_STANDIN

CALLS = 20_000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.parametrize("binding", BINDINGS)
def test_soak(tmp_path: Path, binding: BindingName) -> None:
    """Calls of changing sizes and batches on two streams, shapes coming and going: no buffer, graph or byte more."""
    # More shapes than the streams keep, so that graphs are made and forgotten all the time, but seldom.
    batches = [
        pictures(n, *size, seed=n) for n, size in [(1, (20, 20)), (2, (30, 25)), (1, (20, 40)), (1, (40, 20))]
    ]
    with world(tmp_path), Detector.load(tiny(tmp_path), backend="onnxruntime", threads=1) as host:
        wanted = [host.detect_batch(batch, 0.5) for batch in batches]
        with Detector.load(
            tiny(tmp_path), backend="tensorrt", max_pixels=10000, binding=binding, max_graphs=3
        ) as detector:
            backend = gpu_backend(detector)
            memory = []
            pinned = detector.pinned_image(20, 20)
            pinned[...] = batches[0][0]
            start = counts()
            for call in range(CALLS):
                # Mostly one shape after the other for a while.
                row = (call // 250) % len(batches)
                found = detector.detect_batch([pinned] if row == 0 and call % 2 else batches[row], 0.5)
                if call % 500 == 0:
                    for one, other in zip(found, wanted[row], strict=True):
                        same(one, other)
                    gc.collect()
                    memory.append(
                        (resident_bytes(), backend.device.open_resources, backend.device.free_memory())
                    )
            end = counts()
        resident, resources, free = zip(*memory, strict=True)
        assert end.allocations == start.allocations
        assert len(set(free)) == 1
        assert max(resources[5:]) <= max(resources[:5])
        quarter = len(resident) // 4
        assert max(resident[-quarter:]) < max(resident[quarter : 2 * quarter]) + (8 << 20), resident
        assert end.graph_launches - start.graph_launches > CALLS * 0.98
