"""Launch plans of the kernels and the layout of their output."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import InputError

MAX_TOP_K = 1024
DECODE_THREADS = 384  # MAX_THREADS in decode.cu
DECODE_BLOCKS_PER_SM = 2  # what its registers allow, see the resource table
_UNIT_ROWS = 4  # UNIT_ROWS in decode.cu
_VECTOR_BYTES = 16
_KEY_BYTES = 8
_SELECTION_BYTES = 1056  # sizeof(Selection) in select.cuh
_MAX_CELLS = 2**31 - 1  # a flat index has 32 bits, one value is kept apart; signed for the tools' sake
_MAX_GRID_YZ = 65535

_TILE_WIDTH, _TILE_HEIGHT, _PREPROCESS_THREADS = 64, 16, 256  # as in preprocess.cu
_TILE_BYTES = 8 * (_TILE_WIDTH + _TILE_HEIGHT) + 4 * 3 * 256  # sizeof(Tile) there


@dataclass(frozen=True)
class LaunchShape:
    """Grid in blocks, block in threads, dynamic shared memory in bytes."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int


@dataclass(frozen=True)
class PreprocessPlan:
    """How to launch `preprocess`: the entry point and its shape."""

    kernel: str
    shape: LaunchShape


@dataclass(frozen=True)
class DecodePlan:
    """How to launch `decode`: the entry point, its shape, and what `DecodeParams` must say of the workspace.

    `counter_bytes` must be zero before the first launch; `key_bytes` may hold anything.
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
        half: whether the output is fp16; else fp32.

    Raises:
        InputError: a size that the kernel does not take.
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

    The grid follows the number of cells, not of classes: as many blocks as the device runs at once, shared among the
    images, and never more than there is work for.

    Args:
        batch: images, 1..65535.
        classes: channels of the heatmap.
        height: of the output grid, in cells.
        width: of the output grid, in cells.
        rows: output rows an image, 1..1024; the largest top_k that a call can ask for.
        half: whether the heatmap is fp16; else fp32.
        multiprocessors: of the device.
        threads: of a block, a multiple of 32 up to 384; fewer only for tests.

    Raises:
        InputError: a size that the kernel does not take.
    """
    _check_positive(batch=batch, classes=classes, height=height, width=width, multiprocessors=multiprocessors)
    _check_grid("batch", batch)
    if not 1 <= rows <= MAX_TOP_K:
        raise InputError(f"decode gives 1 to {MAX_TOP_K} rows an image, asked for {rows}", "lower top_k")
    if threads % 32 or not 32 <= threads <= DECODE_THREADS:
        raise InputError(f"a block of decode has 32 to {DECODE_THREADS} threads by 32, asked for {threads}")
    if classes * height * width > _MAX_CELLS:
        raise InputError(
            f"a heatmap of {classes} x {height} x {width} cells is larger than {_MAX_CELLS} cells",
            "use a smaller network input",
        )
    # A little more than rows: a cut that may stop early is several times cheaper than an exact one.
    list_keys = rows + rows // 4 + 32
    buffer_keys = 2048 if list_keys <= 1024 else 3072
    work = -(-decode_units(classes, height, width, half) // threads)
    # All blocks run at once: a few too many would make a second wave, and double the time. Among those, the fewest
    # that need no more rounds: each block more is a list more to merge.
    at_once = max(1, min(work, multiprocessors * DECODE_BLOCKS_PER_SM // batch))
    rounds = -(-work // at_once)
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
    """Units of work in one image's heatmap: 4 rows x 16 bytes, what one thread looks at together."""
    cells = _VECTOR_BYTES // (2 if half else 4)
    return classes * -(-height // _UNIT_ROWS) * -(-width // cells)


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} must be at least 1, found {size}")


def _check_grid(name: str, blocks: int) -> None:
    if blocks > _MAX_GRID_YZ:
        raise InputError(f"{name} must be at most {_MAX_GRID_YZ}, found {blocks}", "split the batch")


_ALIGNMENT = 256


@dataclass(frozen=True)
class DecodeRows:
    """Decode's output for a batch as arrays on the host, views into one buffer.

    `count` (N,) int32; `xyxy` (N, rows, 4) float32 source-image pixels; `score` (N, rows) float32; `label` (N, rows)
    int32; `extra` (N, rows, extra_columns) float32. Rows past an image's count are zeros with label -1.
    """

    count: npt.NDArray[np.int32]
    xyxy: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    label: npt.NDArray[np.int32]
    extra: npt.NDArray[np.float32]


@dataclass(frozen=True)
class DecodeLayout:
    """Where each output lies in the buffer: byte offsets, each aligned to 256, for `batch` images of `rows` rows."""

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
        """The outputs in a host copy of the buffer, (nbytes,) uint8, without copying them."""
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
