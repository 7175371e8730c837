"""What was found in a graph: Guess."""

from dataclasses import dataclass, field
from typing import Literal

from centernet_trt.builder.guess.heads import HeadCandidate
from centernet_trt.errors import SpecError
from centernet_trt.runtime.spec import ModelSpec

Role = Literal["heatmap", "box", "offset", "extra"]


@dataclass
class Guess:
    """What was found in a graph, and what remains in doubt.

    Attributes:
        candidates: every tensor that could be a head.
        roles: which tensor is which head, as far as known.
        extras: heads besides heatmap, box and offset.
        family: the preset that the spec starts from; None if unknown.
        stride: input pixels per cell.
        reasons: one sentence for each conclusion.
        doubts: one sentence for each open question, with the line of a spec that answers it.
        preprocessing: where the pre-processing of the spec comes from.
        spec: the spec; None if there is a doubt.
    """

    candidates: list[HeadCandidate]
    roles: dict[Role, HeadCandidate] = field(default_factory=dict)
    extras: list[HeadCandidate] = field(default_factory=list)
    family: str | None = None
    stride: int = 4
    reasons: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    preprocessing: str = ""
    spec: ModelSpec | None = None

    def require_spec(self) -> ModelSpec:
        """The spec.

        Raises:
            SpecError: there is a doubt; the message has the candidates and the lines of a spec that decide.
        """
        if self.spec is not None:
            return self.spec
        listed = "\n".join(f"  {describe(c)}" for c in self.candidates) or "  none"
        doubts = "\n".join(f"  - {doubt}" for doubt in self.doubts)
        raise SpecError(
            f"the graph does not say for certain what its heads mean:\n{doubts}\ntensors that could be heads:\n{listed}",
            "write what is known into a spec file, a preset and what differs, and give it with --spec",
        )


def describe(candidate: HeadCandidate) -> str:
    """One line about a candidate: name, shape, activation."""
    height, width = candidate.grid
    shown = {"sigmoid": ", sigmoid", "probability": ", sigmoid further up"}.get(candidate.activation, "")
    if not shown and candidate.exponential:
        shown = ", exp"
    if not shown and candidate.activation == "unknown" and candidate.values is not None:
        shown = ", values {:.3g} to {:.3g}".format(*candidate.values)
    kind = "output" if candidate.output else "inside the graph"
    return f"{candidate.tensor}: {candidate.channels} channels on {height}x{width} cells{shown} ({kind})"
