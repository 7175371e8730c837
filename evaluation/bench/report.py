"""BenchReport: every sample and how it was taken (`schema` 2 of kind `bench`; schema 1 is read too)."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from centernet_trt.errors import InputError
from centernet_trt.evaluation.bench.statistics import (
    STABLE_WITHIN,
    Stability,
    Summary,
    TimedRequest,
    flat,
    in_thirds,
    part_rates,
    stability,
    summarise,
    whole_rate,
)
from centernet_trt.evaluation.bench.timing import WHOLE, Sample, TimingRules
from centernet_trt.runtime.presets import describe_validation

SCHEMA: Literal[2] = 2
NETWORK_ALONE = "network alone"
"""Name of the series of the network and nothing else, on prepared tensors."""


class ReportModel(BaseModel):
    """Base of the report's parts."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Series(ReportModel):
    """Samples of one subject: for each window, seconds by stage, call after call. `whole` is always there."""

    windows: tuple[dict[str, tuple[float, ...]], ...] = Field(min_length=3)

    @model_validator(mode="after")
    def _even(self) -> Self:
        for window in self.windows:
            if (
                WHOLE not in window
                or len({len(values) for values in window.values()}) != 1
                or not window[WHOLE]
            ):
                raise ValueError(
                    "every window needs `whole`, and equally many samples (one or more) of every stage"
                )
            if min(min(values) for values in window.values()) < 0:
                raise ValueError("a time is negative")
        if len({tuple(window) for window in self.windows}) != 1:
            raise ValueError("every window needs the same stages")
        return self

    @classmethod
    def of(cls, windows: list[list[Sample]]) -> "Series":
        """From samples as `timing.measure` returns them; rounded to the nanosecond."""
        return cls(
            windows=tuple(
                {stage: tuple(round(sample[stage], 9) for sample in window) for stage in window[0]}
                for window in windows
            )
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in order, `whole` last."""
        return tuple(self.windows[0])

    def of_stage(self, stage: str = WHOLE) -> list[tuple[float, ...]]:
        """Seconds of one stage, by window."""
        return [window[stage] for window in self.windows]

    def summary(self, stage: str = WHOLE) -> Summary:
        """Percentiles of a stage over all windows."""
        return summarise(flat(self.of_stage(stage)))

    def stability(self) -> Stability:
        """Whether `whole` is stable over the windows."""
        return stability(self.of_stage())


class LowerBound(ReportModel):
    """A stage's lower bound (roofline) for the median image.

    Attributes:
        bytes: moved at least.
        operations: done at least.
        counted: what was counted, in words.
        seconds: the bound.
        bound: which of the two takes longer.
    """

    bytes: int
    operations: int
    counted: str
    seconds: float
    bound: Literal["bytes", "operations"]


class ThroughputRecord(ReportModel):
    """Requests under one load.

    Attributes:
        threads: that send requests; for `submit`, the images always in flight.
        batch: images in a request.
        way: `call` for batches given to `Detector.detect_batch`; `submit` for single images given to
            `Detector.submit`, which groups them.
        mean_batch: for `submit`, the mean size of the groups.
        requests: (sent, answered, images) each, in seconds from the first.
    """

    threads: int
    batch: int
    way: Literal["call", "submit"] = "call"
    mean_batch: float | None = None
    requests: tuple[tuple[float, float, int], ...] = Field(min_length=4)

    def _requests(self) -> list[TimedRequest]:
        return [TimedRequest(start, end, images) for start, end, images in self.requests]

    @property
    def rate(self) -> float:
        """Images a second."""
        return whole_rate(self._requests())

    @property
    def stable(self) -> bool:
        """Whether the rates of three successive parts are within 10 %."""
        rates = part_rates(self._requests())
        return max(rates) / min(rates) - 1 <= STABLE_WITHIN

    @property
    def wait(self) -> Summary:
        """Seconds from a request to its answer."""
        return summarise([end - start for start, end, _ in self.requests])

    def image_seconds(self) -> list[list[float]]:
        """Seconds between successive answers per image of the later one, in three parts; their mean is 1 / rate."""
        gaps = [(after[1] - before[1]) / after[2] for before, after in pairwise(self.requests)]
        return [list(part) for part in in_thirds(gaps)]


class Entry(ReportModel):
    """One bundle: what it is, how it ran, and what was measured.

    Attributes:
        name: of the bundle, unique in the report.
        precision: of the network.
        source_sha256: of the ONNX file that it was built from.
        model_sha256: of the bundle's graph.
        executor: what ran the network, in words.
        mode: how, in words.
        inputs: sizes of the network's input, as WIDTHxHEIGHT.
        multiply_adds: of the network for the first image; None where they were not counted.
        parameters: of the network, likewise.
        pipeline: one image in flight, by stage; on a GPU the whole only.
        alone: other subjects, of one stage each, by name: the network alone (trtexec's figure), and baselines.
        throughput: many requests at once.
        cold: seconds by part for each new interpreter, see `cold_start`.
        floors: lower bounds by stage.
        staged: on a GPU, the stages by CUDA events, a second series without the CUDA graph.
    """

    name: str
    precision: str
    source_sha256: str
    model_sha256: str
    executor: str
    mode: str
    inputs: tuple[str, ...]
    multiply_adds: int | None
    parameters: int | None
    pipeline: Series
    alone: dict[str, Series] = {}
    throughput: tuple[ThroughputRecord, ...] = ()
    cold: tuple[dict[str, float], ...] = ()
    floors: dict[str, LowerBound] = {}
    staged: Series | None = None


class Rules(ReportModel):
    """The timing rules of a run, see `timing.TimingRules`; `short`: less than trtexec's."""

    warmup: float
    duration: float
    iterations: int
    windows: int
    short: bool

    @classmethod
    def of(cls, rules: TimingRules) -> Self:
        """The record of these rules."""
        return cls(
            warmup=rules.warmup,
            duration=rules.duration,
            iterations=rules.iterations,
            windows=rules.windows,
            short=rules.short,
        )


class ImageRecord(ReportModel):
    """An image that was used: its file name, and its width and height in pixels."""

    name: str
    width: int
    height: int


class BenchReport(ReportModel):
    """A whole run of the benchmark."""

    schema_: Literal[2] = Field(default=SCHEMA, alias="schema")
    kind: Literal["bench"] = "bench"
    created: str
    command: str
    rules: Rules
    images: tuple[ImageRecord, ...]
    rates: dict[str, Any]
    environment: dict[str, Any]
    entries: tuple[Entry, ...] = Field(min_length=1)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return self.model_dump(mode="json", by_alias=True)

    def to_text(self) -> str:
        """As JSON text, a list of numbers on one line."""
        text = json.dumps(self.to_json(), indent=1)
        for numbers in (r"\[[\d.,eE+\-\s]+\]", r"\[(?:\s*\[[^\[\]]*\],?)+\s*\]"):  # then lists of such lists
            text = re.sub(numbers, lambda found: "".join(found[0].split()), text)
        return text + "\n"

    def warnings(self) -> list[str]:
        """Caveats for the reader: the notes, a short run, and unstable series."""
        said = list(self.notes)
        if self.rules.short:
            said.append(
                f"short run ({self.rules.duration:g} s, {self.rules.iterations} iterations): not for quoting"
            )
        for entry in self.entries:
            for name, series in {"pipeline": entry.pipeline, **entry.alone}.items():
                found = series.stability()
                if not found.stable:
                    medians = ", ".join(f"{median * 1e3:.2f}" for median in found.medians)
                    said.append(
                        f"{entry.name}, {name}: unstable, the medians of three successive windows are {medians} ms "
                        f"({found.spread:.0%} apart, {STABLE_WITHIN:.0%} is allowed)"
                    )
            said += [
                f"{entry.name}, threads {row.threads}, batch {row.batch}: unstable throughput"
                for row in entry.throughput
                if not row.stable
            ]
        return said


def read_report(path: Path) -> BenchReport:
    """Read a report that `bench --json` wrote.

    Raises:
        InputError: no file, not JSON, not such a report, or one of another schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the report {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("kind") != "bench" or data.get("schema") not in (1, SCHEMA):
        raise InputError(
            f"{path} is not a bench report of schema 1 or {SCHEMA}",
            "make one: centernet-trt bench BUNDLE --json FILE",
        )
    try:
        return BenchReport.model_validate(_as_current(data))
    except ValidationError as error:
        raise InputError(f"{path} is not a valid bench report:\n{describe_validation(error)}") from None


def _as_current(data: dict[str, Any]) -> dict[str, Any]:
    """A report of schema 1 in the form of schema 2, which no longer holds verdicts on this project's own goals."""
    if data["schema"] == SCHEMA:
        return data
    entries = data.get("entries")
    if isinstance(entries, list):
        entries = [
            {key: value for key, value in entry.items() if key != "targets"}
            if isinstance(entry, dict)
            else entry
            for entry in entries
        ]
    return {**data, "schema": SCHEMA, "entries": entries}
