"""PyTorch's own decode and pre-processing on the GPU, timed beside the kernels: the steps of the official code.

Where there is a choice it is made in PyTorch's favour: sampling positions are computed beforehand, and sigmoid, max-pool
and top-K run in fp16.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from kernel_steps import DecodeStep, PreprocessStep

from centernet_trt.errors import BackendError
from centernet_trt.runtime.cuda.resources import Stream
from centernet_trt.runtime.geometry import Placement

EAGER, COMPILED = "PyTorch eager", "torch.compile"
Call = Callable[[], Any]
_SCORE_TOLERANCE = 2e-3
"""fp16's sigmoid has steps of 5e-4 below 1."""
_LEVEL_TOLERANCE = 2.0
"""Grey levels: ours rounds to one before the table, PyTorch does not."""


def usable_torch() -> tuple[Any, str]:
    """PyTorch and "", or None and why it cannot be timed here."""
    try:
        import torch
    except ImportError:
        return None, "PyTorch is not installed: no PyTorch baseline"
    if not torch.cuda.is_available():
        return None, f"PyTorch {torch.__version__} sees no GPU: no PyTorch baseline"
    return torch, ""


def torch_decode(
    torch: Any, heads: Mapping[str, Any], inverse: tuple[float, float, float, float], k: int
) -> Any:
    """The official decode: (N, K, 6) float32 of box in source pixels, score, class, by score.

    Args:
        torch: the module.
        heads: `hm` (N, C, H, W) logits, `wh` and `reg` (N, 2, H, W) in cells.
        inverse: source = (network - shift) / scale, as (scale_x, scale_y, shift_x, shift_y).
        k: rows an image.
    """
    heat = heads["hm"].sigmoid()
    pooled = torch.nn.functional.max_pool2d(heat, 3, stride=1, padding=1)
    heat = heat * (pooled == heat).to(heat.dtype)
    batch, classes, height, width = heat.shape
    some = min(k, height * width)
    scores, cells = torch.topk(heat.view(batch, classes, -1), some)
    best, place_of = torch.topk(scores.view(batch, -1), k)
    label = torch.div(place_of, some, rounding_mode="floor")
    cell = cells.view(batch, -1).gather(1, place_of)

    def at(head: Any) -> Any:
        flat = head.view(batch, 2, -1).permute(0, 2, 1)
        return flat.gather(1, cell[..., None].expand(-1, -1, 2)).float()

    y, x = torch.div(cell, width, rounding_mode="floor"), cell % width
    centre = torch.stack([x, y], dim=-1).float() + at(heads["reg"])
    half = at(heads["wh"]) / 2
    scale_x, scale_y, shift_x, shift_y = inverse
    corners = 4 * torch.stack([centre - half, centre + half], dim=2)
    corners = torch.stack(
        [(corners[..., 0] - shift_x) / scale_x, (corners[..., 1] - shift_y) / scale_y], dim=-1
    )
    return torch.cat([corners.flatten(2), best[..., None].float(), label[..., None].float()], dim=-1)


def torch_preprocess(torch: Any, images: Any, grid: Any, scale: Any, bias: Any) -> Any:
    """uint8 (N, H, W, 3) -> fp16 (N, 3, height, width): bilinear samples at `grid`, black outside, times scale plus bias."""
    planes = images.permute(0, 3, 1, 2).float()
    sampled = torch.nn.functional.grid_sample(
        planes, grid, mode="bilinear", padding_mode="zeros", align_corners=True
    )
    return (sampled * scale + bias).half()


def sampling_grid(placement: Placement) -> npt.NDArray[np.float32]:
    """(height, width, 2) positions for `grid_sample` with align_corners: what cv2.warpAffine samples."""
    x = (np.arange(placement.width) - placement.shift_x) / placement.scale_x
    y = (np.arange(placement.height) - placement.shift_y) / placement.scale_y
    across = 2 * x / (placement.source_width - 1) - 1
    down = 2 * y / (placement.source_height - 1) - 1
    return np.stack(np.broadcast_arrays(across[None, :], down[:, None]), axis=-1).astype(np.float32)


def decode_calls(torch: Any, step: DecodeStep, device: str = "cuda") -> tuple[dict[str, Call], list[str]]:
    """By name, calls that decode the step's heads; and notes on what does not work here.

    Raises:
        BackendError: an answer is not the host's.
    """
    heads = {name: torch.from_numpy(head).to(device) for name, head in step.heads.items()}
    placement = step.placements[0]
    inverse = (placement.scale_x, placement.scale_y, placement.shift_x, placement.shift_y)
    wanted = [found.score for found in step.wanted()]

    def check(name: str, call: Call) -> None:
        rows = call().float().cpu().numpy()
        for image, scores in enumerate(wanted):
            # Where there are fewer than K peaks, the official code fills up with zeros.
            gap = np.abs(rows[image, : len(scores), 4] - scores).max(initial=0.0)
            if not gap <= _SCORE_TOLERANCE:
                raise BackendError(f"{name} decodes image {image} to scores {gap:.4f} away from the host's")

    return _calls(torch, torch_decode, (heads, inverse, step.k), check)


def preprocess_calls(
    torch: Any, step: PreprocessStep, device: str = "cuda"
) -> tuple[dict[str, Call], list[str]]:
    """By name, calls that pre-process the step's images, which lie on the GPU; and notes.

    Raises:
        BackendError: an answer is not the host's.
    """
    images = torch.from_numpy(step.images).to(device)
    grid = torch.from_numpy(sampling_grid(step.placements[0])).to(device).expand(len(step.images), -1, -1, -1)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (step.spec.input.mean, step.spec.input.std))
    scale = torch.from_numpy(np.float32(step.spec.input.scale) / std).to(device)
    bias = torch.from_numpy(-mean / std).to(device)
    wanted = step.grey_levels(step.wanted())

    def check(name: str, call: Call) -> None:
        gap = float(np.abs(step.grey_levels(call().cpu().numpy()) - wanted).max())
        if not gap <= _LEVEL_TOLERANCE:
            raise BackendError(f"{name} pre-processes to {gap:.2f} grey levels from the host's")

    return _calls(torch, torch_preprocess, (images, grid, scale, bias), check)


def _calls(
    torch: Any, function: Callable[..., Any], arguments: tuple[Any, ...], check: Callable[[str, Call], None]
) -> tuple[dict[str, Call], list[str]]:
    def eager() -> Any:
        with torch.inference_mode():
            return function(torch, *arguments)

    check(EAGER, eager)
    # Another shape would be compiled for all shapes, and after some of them not at all.
    torch.compiler.reset()
    compiled = torch.compile(function)

    def fast() -> Any:
        with torch.inference_mode():
            return compiled(torch, *arguments)

    try:
        fast()
    except (RuntimeError, OSError, ImportError) as error:  # no compiler for it, mostly
        return {EAGER: eager}, [f"torch.compile does not work here: {' '.join(str(error).split())[:200]}"]
    check(COMPILED, fast)
    return {EAGER: eager, COMPILED: fast}, []


def on_stream(torch: Any, stream: Stream, call: Call) -> Call:
    """The call with its work on our stream, so that the same events time it."""
    external = torch.cuda.ExternalStream(stream.number)

    def work() -> Any:
        with torch.cuda.stream(external):
            return call()

    return work
