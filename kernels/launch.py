"""plan_preprocess, plan_decode: launch plans of the kernels. DecodeLayout: their output."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError

MAX_TOP_K = 1024
DECODE_THREADS = 384  # MAX_THREADS in decode.cu
DECODE_BLOCKS_PER_SM = 2  # limited by registers, see the resource table
_UNIT_ROWS = 4  # UNIT_ROWS in decode.cu
_VECTOR_BYTES = 16
_KEY_BYTES = 8
_SELECTION_BYTES = 1056  # sizeof(Selection) in select.cuh
_MAX_CELLS = 2**31 - 1  # a flat index has 32 bits with one value reserved, and is a signed number in tools
_MAX_GRID_YZ = 65535

_TILE_WIDTH, _TILE_HEIGHT, _PREPROCESS_THREADS = 64, 16, 256  # as in preprocess.cu
_TILE_BYTES = 8 * (_TILE_WIDTH + _TILE_HEIGHT) + 4 * 3 * 256  # sizeof(Tile) there


@dataclass(frozen=True)
class LaunchShape:
    """Launch configuration of a kernel.

    Attributes:
        grid: blocks along x, y and z.
        block: threads along x, y and z.
        shared_bytes: dynamic shared memory of a block.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int


@dataclass(frozen=True)
class PreprocessPlan:
    """Launch plan of `preprocess`.

    Attributes:
        kernel: entry point.
        shape: launch configuration.
    """

    kernel: str
    shape: LaunchShape


@dataclass(frozen=True)
class DecodePlan:
    """Launch plan of `decode`.

    Attributes:
        kernel: entry point.
        shape: launch configuration.
        rows: output rows of an image.
        list_keys: most keys that a block hands on.
        buffer_keys: capacity of a block's key buffer in shared memory.
        counter_bytes: size of the counters, which must be zero before the first launch.
        key_bytes: size of the key lists, of any content.
    """

    kernel: str
    shape: LaunchShape
    rows: int
    list_keys: int
    buffer_keys: int
    counter_bytes: int
    key_bytes: int


def plan_preprocess(batch: int, height: int, width: int, half: bool) -> PreprocessPlan:
    """Plan `preprocess` for a batch of images into (batch, 3, height, width).

    Args:
        batch: images, 1..65535.
        height: of the network input, in pixels.
        width: of the network input, in pixels.
        half: whether the output is fp16, else fp32.

    Raises:
        InputError: a size that the kernel does not support.
    """
    _check_positive(batch=batch, height=height, width=width)
    tiles_y = -(-height // _TILE_HEIGHT)
    _check_grid("network input height in tiles", tiles_y)
    _check_grid("batch", batch)
    grid = (-(-width // _TILE_WIDTH), tiles_y, batch)
    name = "preprocess_half" if half else "preprocess_float"
    return PreprocessPlan(name, LaunchShape(grid, (_PREPROCESS_THREADS, 1, 1), _TILE_BYTES))


def plan_decode(
    batch: int,
    classes: int,
    height: int,
    width: int,
    rows: int,
    half: bool,
    multiprocessors: int,
    threads: int = DECODE_THREADS,
) -> DecodePlan:
    """Plan `decode` for a heatmap (batch, classes, height, width).

    The grid depends on the number of cells, not of classes: as many blocks as run concurrently on the device, divided
    among the images, and no more than there is work for.

    Args:
        batch: images, 1..65535.
        classes: channels of the heatmap.
        height: of the output grid, in cells.
        width: of the output grid, in cells.
        rows: output rows of an image, 1..1024; the upper bound of the images' top_k.
        half: whether the heatmap is fp16, else fp32.
        multiprocessors: of the device.
        threads: of a block, a multiple of 32 up to 384; fewer for tests only.

    Raises:
        InputError: a size that the kernel does not support.
    """
    _check_positive(batch=batch, classes=classes, height=height, width=width, multiprocessors=multiprocessors)
    _check_grid("batch", batch)
    if not 1 <= rows <= MAX_TOP_K:
        raise InputError(f"expected a top_k of 1 to {MAX_TOP_K}, got {rows}")
    if threads % 32 or not 32 <= threads <= DECODE_THREADS:
        raise InputError(f"expected a multiple of 32 up to {DECODE_THREADS} threads, got {threads}")
    if classes * height * width > _MAX_CELLS:
        raise InputError(
            f"expected a heatmap of at most {_MAX_CELLS} cells, got {classes} x {height} x {width}",
            "use a smaller network input",
        )
    # More than rows: a cut that may stop early is several times cheaper than an exact one.
    list_keys = rows + rows // 4 + 32
    buffer_keys = 2048 if list_keys <= 1024 else 3072
    work = -(-decode_units(classes, height, width, half) // threads)
    # All blocks run concurrently: a few more would make a second wave and double the time. Of those, the fewest that
    # need no more rounds, since each block adds a list to merge.
    concurrent = max(1, min(work, multiprocessors * DECODE_BLOCKS_PER_SM // batch))
    rounds = -(-work // concurrent)
    blocks = -(-work // rounds)
    return DecodePlan(
        kernel="decode_half" if half else "decode_float",
        shape=LaunchShape((blocks, batch, 1), (threads, 1, 1), _SELECTION_BYTES + buffer_keys * _KEY_BYTES),
        rows=rows,
        list_keys=list_keys,
        buffer_keys=buffer_keys,
        counter_bytes=batch * 2 * 4,
        key_bytes=batch * blocks * list_keys * _KEY_BYTES,
    )


def decode_units(classes: int, height: int, width: int, half: bool) -> int:
    """Return the units of work in one image's heatmap; a thread processes units of 4 rows x 16 bytes."""
    cells = _VECTOR_BYTES // (2 if half else 4)
    return classes * -(-height // _UNIT_ROWS) * -(-width // cells)


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"expected {name} of at least 1, got {size}")


def _check_grid(name: str, blocks: int) -> None:
    if blocks > _MAX_GRID_YZ:
        raise InputError(f"expected {name} of at most {_MAX_GRID_YZ}, got {blocks}", "split the batch")


_ALIGNMENT = 256


@dataclass(frozen=True)
class DecodeRows:
    """Output of `decode` for a batch on the host, views into one buffer. Rows past `count` are zeros with label -1.

    Attributes:
        count: (N,) int32, valid rows of each image.
        xyxy: (N, rows, 4) float32, boxes in pixels of the source image.
        score: (N, rows) float32.
        label: (N, rows) int32.
        extra: (N, rows, extra_columns) float32, values of the extra heads.
    """

    count: npt.NDArray[np.int32]
    xyxy: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    label: npt.NDArray[np.int32]
    extra: npt.NDArray[np.float32]


@dataclass(frozen=True)
class DecodeLayout:
    """Byte offsets of decode's outputs in one buffer, each aligned to 256.

    Attributes:
        batch: images.
        rows: output rows of an image.
        extra_columns: channels of all extra heads.
    """

    batch: int
    rows: int
    extra_columns: int

    @property
    def count(self) -> int:
        """Offset of int32[batch]."""
        return 0

    @property
    def xyxy(self) -> int:
        """Offset of float32[batch][rows][4]."""
        return _aligned(self.count + 4 * self.batch)

    @property
    def score(self) -> int:
        """Offset of float32[batch][rows]."""
        return _aligned(self.xyxy + 16 * self.batch * self.rows)

    @property
    def label(self) -> int:
        """Offset of int32[batch][rows]."""
        return _aligned(self.score + 4 * self.batch * self.rows)

    @property
    def extra(self) -> int:
        """Offset of float32[batch][rows][extra_columns]."""
        return _aligned(self.label + 4 * self.batch * self.rows)

    @property
    def nbytes(self) -> int:
        """Size of the whole buffer in bytes."""
        return _aligned(self.extra + 4 * self.batch * self.rows * self.extra_columns)

    def view(self, buffer: npt.NDArray[np.uint8]) -> DecodeRows:
        """Return views of the outputs in a host copy of the buffer, (nbytes,) uint8."""
        n, k, e = self.batch, self.rows, self.extra_columns

        def part(offset: int, items: int, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
            return buffer[offset : offset + 4 * items].view(dtype)

        return DecodeRows(
            count=part(self.count, n, np.int32).reshape(n).view(np.int32),
            xyxy=part(self.xyxy, n * k * 4, np.float32).reshape(n, k, 4).view(np.float32),
            score=part(self.score, n * k, np.float32).reshape(n, k).view(np.float32),
            label=part(self.label, n * k, np.int32).reshape(n, k).view(np.int32),
            extra=part(self.extra, n * k * e, np.float32).reshape(n, k, e).view(np.float32),
        )


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
