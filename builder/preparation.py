"""Preparation: the state that the passes of a build work on. Pass: a row of the pass list."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from onnx import ModelProto

from centernet_trt.builder.calibration.images import CalibrationImages
from centernet_trt.builder.graph.compare import HeadError
from centernet_trt.builder.int8.quantise import Int8Result
from centernet_trt.builder.int8.validate import Measured
from centernet_trt.builder.options import BuildOptions
from centernet_trt.builder.progress import BuildReporter
from centernet_trt.runtime.manifest import PassRecord, ProfileRecord
from centernet_trt.runtime.spec import FixedSize, ModelSpec

__all__ = ["Pass", "Preparation", "SpecFinder"]

SpecFinder = Callable[[ModelProto], ModelSpec]
"""Finds the spec of a source graph, as `guess_spec(graph).require_spec()` does."""


@dataclass
class Preparation:
    """The state that passes work on.

    Every pass makes a graph of its own; replacing `model` frees the one before, which can be hundreds of megabytes.
    """

    path: Path
    given_spec: ModelSpec | SpecFinder
    options: BuildOptions
    images: CalibrationImages | None
    lower_deform_conv: bool
    reporter: BuildReporter
    model: ModelProto = field(default_factory=ModelProto)
    source: ModelProto = field(
        init=False
    )  # what the result is compared with: cut at the heads, no pass has changed it
    original: ModelProto | None = None  # the file's graph, if `load` rewrote it
    spec: ModelSpec = field(init=False)
    profiles: tuple[ProfileRecord, ...] = field(init=False)
    differences: dict[str, HeadError] = field(init=False)
    kept_fp32: dict[str, str] = field(default_factory=dict)
    int8: Int8Result | None = None
    measured: Measured | None = None
    records: list[PassRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def input_name(self) -> str:
        """Name of the image input."""
        return self.spec.input.name or ""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) that the first profile is tuned for."""
        return self.profiles[0].height.opt, self.profiles[0].width.opt

    @property
    def fixed_size(self) -> FixedSize | None:
        """The input size, if the spec fixes it."""
        size = self.spec.input.size
        return size if isinstance(size, FixedSize) else None

    def progress(self, name: str) -> Callable[[int, int], None]:
        """A callback for (done, total) of a pass."""
        return partial(self.reporter.step, name)


@dataclass(frozen=True)
class Pass:
    """A row of the pass list.

    Attributes:
        name: as in the manifest.
        what: what it does, for the documentation.
        run: does it; replaces `Preparation.model` or notes what it found.
        when: the condition in words; empty for a pass that always runs.
        applies: the condition.
        repeat_from: name of the pass to go on with afterwards; empty for the next one.
        recorded: whether it has a row in the manifest.
    """

    name: str
    what: str
    run: Callable[[Preparation], None]
    when: str = ""
    applies: Callable[[Preparation], bool] = lambda _: True
    repeat_from: str = ""
    recorded: bool = True
