"""Run the two kernels on any machine with memory and launches, and compare the results with the host."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from centernet_trt.kernels.launch import (
    DecodeLayout,
    DecodePlan,
    DecodeRows,
    LaunchShape,
    plan_decode,
    plan_preprocess,
)
from centernet_trt.kernels.structs import DecodeParams
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.geometry import Placement
from centernet_trt.runtime.gpu.kernels import (
    decode_params,
    extra_columns,
    image_descriptor,
    preprocess_params,
)
from centernet_trt.runtime.host.decode import decode_image
from centernet_trt.runtime.host.preprocess import level_table
from centernet_trt.runtime.spec import ModelSpec

Heads = Mapping[str, npt.NDArray[Any]]
IDENTITY = Placement(64, 48, 64, 48, 1.0, 1.0, 0.0, 0.0, False, False, 0, 0, 64, 48, 0)


class Machine(Protocol):
    """Memory and launches: the CPU harness, or a driver binding."""

    multiprocessors: int

    def reset(self) -> None: ...
    def allocate(self, nbytes: int, zero: bool = False) -> int: ...
    def upload(self, data: npt.NDArray[Any] | bytes, pointers: bool = False) -> int: ...
    def write(self, address: int, data: bytes) -> None: ...
    def download(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]: ...
    def launch(self, kernel: str, shape: LaunchShape, params: ctypes.Structure) -> None: ...


class DecodeRun:
    """A batch's heads, descriptors, workspace and outputs on a machine, ready to be launched any number of times.

    `skew`: heads begin so many elements past an aligned address. `threads`, `buffer_keys` and `list_keys` make the
    plan smaller than a device would, so that small maps reach every path.
    """

    def __init__(
        self,
        machine: Machine,
        heads: Heads,
        spec: ModelSpec,
        placements: Sequence[Placement],
        threshold: float | None = None,
        top_k: int | Sequence[int] | None = None,
        rows: int | None = None,
        skew: int = 0,
        threads: int = 384,
        buffer_keys: int | None = None,
        list_keys: int | None = None,
    ) -> None:
        machine.reset()
        self.machine, self.spec, self.placements = machine, spec, placements
        heatmap = heads[spec.heads.heatmap.tensor]
        batch, classes, height, width = heatmap.shape
        self.top_k = (
            [spec.top_k if top_k is None else top_k] * batch if not isinstance(top_k, Sequence) else top_k
        )
        self.threshold = threshold
        rows = rows or max(*self.top_k, 1)
        half = heatmap.dtype == np.float16
        plan = plan_decode(batch, classes, height, width, rows, half, machine.multiprocessors, threads)
        self.plan = _shrunk(plan, buffer_keys, list_keys)
        self.layout = DecodeLayout(batch, rows, extra_columns(spec.heads))
        addresses = {}
        for name in spec.heads.tensors:
            head = heads[name]
            lead = np.zeros(skew, dtype=head.dtype)
            at = machine.upload(np.concatenate([lead, np.ascontiguousarray(head).reshape(-1)]))
            addresses[name] = (at + skew * head.itemsize, head.dtype == np.float16)
        self.images = machine.upload(self._descriptors())
        self.counters = machine.allocate(self.plan.counter_bytes, zero=True)
        self.keys = machine.allocate(self.plan.key_bytes)
        self.output = machine.allocate(self.layout.nbytes)
        self.params: DecodeParams = decode_params(
            spec,
            self.plan,
            (classes, height, width),
            addresses,
            self.images,
            self.counters,
            self.keys,
            self.output,
            self.layout,
        )

    def _descriptors(self) -> bytes:
        return b"".join(
            bytes(image_descriptor(placement, self.spec, self.threshold, top_k))
            for placement, top_k in zip(self.placements, self.top_k, strict=True)
        )

    def launch(self) -> DecodeRows:
        """Run the kernel once; counters must be as it found them."""
        # The workspace may hold anything: here keys better than any real one, should the kernel read what it never wrote.
        self.machine.write(self.keys, b"\xff" * self.plan.key_bytes)
        self.machine.launch(self.plan.kernel, self.plan.shape, self.params)
        left = self.machine.download(self.counters, self.plan.counter_bytes)
        assert not left.any(), "the counters are not zero after the launch"
        return self.rows()

    def rows(self) -> DecodeRows:
        """The output buffer."""
        return self.layout.view(self.machine.download(self.output, self.layout.nbytes))


def _shrunk(plan: DecodePlan, buffer_keys: int | None, list_keys: int | None) -> DecodePlan:
    if buffer_keys is None:
        return plan
    list_keys = list_keys or plan.list_keys
    assert buffer_keys > list_keys >= plan.rows
    assert buffer_keys >= 1 << (list_keys - 1).bit_length()
    spared = (plan.buffer_keys - buffer_keys) * 8
    shape = replace(plan.shape, shared_bytes=plan.shape.shared_bytes - spared)
    key_bytes = plan.key_bytes // plan.list_keys * list_keys
    return replace(plan, shape=shape, buffer_keys=buffer_keys, list_keys=list_keys, key_bytes=key_bytes)


def check_decode(run: DecodeRun, heads: Heads, found: DecodeRows | None = None) -> None:
    """Launch (unless `found` is given) and compare with the oracle: same cells, same order, scores, boxes, padding."""
    found = run.launch() if found is None else found
    spec = run.spec.model_copy(update={"nms_iou": None})
    for i, placement in enumerate(run.placements):
        one = {name: heads[name][i] for name in spec.heads.tensors}
        wanted = _oracle(one, spec, placement, run.threshold, run.top_k[i])
        n = len(wanted)
        assert found.count[i] == n, f"image {i}: count {found.count[i]}, the oracle has {n}"
        np.testing.assert_array_equal(found.label[i, :n], wanted.label)
        np.testing.assert_allclose(found.score[i, :n], wanted.score, rtol=1.2e-7, atol=0)
        _close(found.xyxy[i, :n], wanted.xyxy, placement)
        column = 0
        for extra in spec.heads.extra if run.top_k[i] else ():
            values = found.extra[i, :n, column : column + extra.channels]
            _close(values, wanted.extra[extra.name], placement)
            column += extra.channels
        assert (found.label[i, n:] == -1).all()
        for rest in (found.score[i, n:], found.xyxy[i, n:], found.extra[i, n:]):
            assert not rest.any(), "rows past the count are not zero"


def _oracle(
    heads: Heads, spec: ModelSpec, placement: Placement, threshold: float | None, top_k: int
) -> Detections:
    if top_k == 0:  # the kernel's way to switch an image off; the host has no such call
        return Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32), {})
    with np.errstate(all="ignore"):
        return decode_image(heads, spec, placement, threshold, top_k)


def _close(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32], placement: Placement) -> None:
    # 1e-4 relative is the contract; the kernel computes in float64 like the oracle, so this is far tighter. A corner
    # near zero is a difference of larger numbers: hence the absolute part, in source pixels.
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * max(1.0, 1 / placement.scale_x))


class PreprocessRun:
    """A batch of uint8 images (h, w, 1, 3 or 4) on a machine, their rows `pad` bytes apart, ready to be launched."""

    def __init__(
        self,
        machine: Machine,
        images: Sequence[npt.NDArray[np.uint8]],
        placements: Sequence[Placement],
        spec: ModelSpec,
        half: bool = False,
        pad: int = 0,
    ) -> None:
        machine.reset()
        self.machine = machine
        height, width = placements[0].height, placements[0].width
        descriptors = b""
        for image, placement in zip(images, placements, strict=True):
            rows = image.reshape(image.shape[0], -1)
            gap = np.full((len(rows), pad), 255, dtype=np.uint8)
            # The last row needs no gap after it: reading there would be a step outside.
            strided = np.concatenate([rows, gap], axis=1).reshape(-1)[: rows.size + pad * (len(rows) - 1)]
            address, pitch, channels = machine.upload(strided), rows.shape[1] + pad, image.shape[2]
            descriptors += bytes(
                image_descriptor(placement, spec, pixels=address, pitch=pitch, channels=channels)
            )
        self.plan = plan_preprocess(len(images), height, width, half)
        self.shape, self.dtype = (len(images), 3, height, width), np.dtype(np.float16 if half else np.float32)
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self.output = machine.allocate(self.nbytes)
        self.images = machine.upload(descriptors, pointers=True)
        levels = machine.upload(level_table(spec.input))
        self.params = preprocess_params(spec.input, height, width, self.images, levels, self.output)

    def launch(self) -> npt.NDArray[Any]:
        """The input tensor (N, 3, H, W)."""
        self.machine.launch(self.plan.kernel, self.plan.shape, self.params)
        return self.machine.download(self.output, self.nbytes).view(self.dtype).reshape(self.shape)


def run_preprocess(
    machine: Machine,
    images: Sequence[npt.NDArray[np.uint8]],
    placements: Sequence[Placement],
    spec: ModelSpec,
    half: bool = False,
    pad: int = 0,
) -> npt.NDArray[Any]:
    """The kernel's input tensor (N, 3, H, W) of a batch."""
    return PreprocessRun(machine, images, placements, spec, half, pad).launch()
