"""What a detector allocates on the GPU and in page-locked memory: all of it when it is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from centernet_trt.kernels.launch import DECODE_BLOCKS_PER_SM, MAX_TOP_K, plan_decode
from centernet_trt.kernels.outputs import DecodeLayout
from centernet_trt.kernels.structs import Image
from centernet_trt.runtime.kernel_params import extra_columns
from centernet_trt.runtime.manifest import Manifest, TensorRecord
from centernet_trt.runtime.profiles import largest_shapes
from centernet_trt.runtime.spec import KeepRes

ALIGNMENT = 256
_IMAGE_BYTES = len(bytes(Image()))
_KEY_BYTES, _COUNTER_BYTES = 8, 8
_ITEM_BYTES = {"float32": 4, "float16": 2}
_FULL_HD = 1920 * 1080


@dataclass(frozen=True)
class StreamMemory:
    """Bytes of every buffer of one stream, for the largest batch, input and top_k.

    `staging`: descriptors and images, pinned and on the device. `tensors`: the network's input and heads by name.
    `workspace`: TensorRT's activations. `counters`, `keys`: of the decode kernel. `output`: rows, on the device and pinned.
    """

    staging: int
    tensors: Mapping[str, int]
    workspace: int
    counters: int
    keys: int
    output: int


@dataclass(frozen=True)
class MemoryUse:
    """Bytes held, by purpose; `weights` is the size of the plan's file, about what the engine takes."""

    device: dict[str, int] = field(default_factory=dict)
    pinned: dict[str, int] = field(default_factory=dict)

    @property
    def device_total(self) -> int:
        """All device memory."""
        return sum(self.device.values())

    @property
    def pinned_total(self) -> int:
        """All page-locked host memory."""
        return sum(self.pinned.values())

    def __str__(self) -> str:
        parts = [
            f"{name} ({where}): {size / 2**20:.1f} MiB"
            for where, sizes in (("device", self.device), ("pinned", self.pinned))
            for name, size in sizes.items()
        ]
        return (
            f"{self.device_total / 2**20:.1f} MiB on the device, {self.pinned_total / 2**20:.1f} MiB pinned: "
            + "; ".join(parts)
        )


def plan_stream(
    manifest: Manifest, max_batch: int, max_pixels: int, workspace: int, multiprocessors: int
) -> StreamMemory:
    """What one stream needs.

    Args:
        manifest: of the bundle: tensors, profiles, spec.
        max_batch: images that run at once.
        max_pixels: of the largest source image that comes from the host.
        workspace: bytes that TensorRT asks for.
        multiprocessors: of the device.
    """
    # Not the largest batch at the largest size: each profile has its own.
    shapes, stride = largest_shapes(manifest.profiles, max_batch), manifest.spec.stride
    rows = max(batch for batch, _, _ in shapes)
    tensors = {manifest.input.name: max(tensor_bytes(manifest.input, *shape) for shape in shapes)}
    for head in manifest.heads:
        tensors[head.name] = max(tensor_bytes(head, n, h // stride, w // stride) for n, h, w in shapes)
    counters, keys, output = decode_bytes(rows, extra_columns(manifest.spec.heads), multiprocessors)
    return StreamMemory(
        staging=_staging(manifest, max_batch, rows, max_pixels),
        tensors=tensors,
        workspace=workspace,
        counters=counters,
        keys=keys,
        output=output,
    )


def decode_bytes(max_batch: int, columns: int, multiprocessors: int) -> tuple[int, int, int]:
    """Bytes of decode's counters, keys and output for any map, any batch up to the largest, and any top_k.

    Args:
        max_batch: images that run at once.
        columns: channels of all further heads.
        multiprocessors: of the device.
    """
    # The length of a block's list follows from the rows alone, the number of blocks from the device or the batch.
    list_keys = plan_decode(1, 1, 4, 4, MAX_TOP_K, half=True, multiprocessors=multiprocessors).list_keys
    blocks = max(multiprocessors * DECODE_BLOCKS_PER_SM, max_batch)
    output = DecodeLayout(max_batch, MAX_TOP_K, columns).nbytes
    return max_batch * _COUNTER_BYTES, blocks * list_keys * _KEY_BYTES, output


def tensor_bytes(record: TensorRecord, batch: int, height: int, width: int) -> int:
    """Size of a tensor (batch, channels, height, width) in bytes."""
    return batch * record.channels * height * width * _ITEM_BYTES[record.dtype]


def descriptor_bytes(batch: int) -> int:
    """Bytes of a batch's image descriptors, with the padding before the first image."""
    return aligned(batch * _IMAGE_BYTES)


def aligned(size: int) -> int:
    """The next multiple of the alignment of buffers."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _staging(manifest: Manifest, max_batch: int, rows: int, max_pixels: int) -> int:
    """Room for a batch of Full HD images, or one as large as is allowed; `keep_res` cannot take larger ones than its input.

    `rows`: of the largest batch, those without an image among them.
    """
    usual = max(max_pixels, max_batch * min(_FULL_HD, max_pixels))
    if isinstance(manifest.spec.input.resize, KeepRes):
        usual = min(usual, max(n * h * w for n, h, w in largest_shapes(manifest.profiles, max_batch)))
    return descriptor_bytes(rows) + 3 * usual + max_batch * ALIGNMENT


def memory_use(streams: int, plan: StreamMemory, weights: int, levels: int) -> MemoryUse:
    """The sum over all streams, by purpose."""
    return MemoryUse(
        device={
            "weights": weights,
            "network activations": streams * plan.workspace,
            "network input and heads": streams * sum(plan.tensors.values()),
            "images": streams * plan.staging,
            "decode": streams * (plan.counters + plan.keys + plan.output) + levels,
        },
        pinned={"images": streams * plan.staging, "detections": streams * plan.output},
    )
