"""The product's targets on an H100, held to what was measured: met, not met, or not judged and why."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from centernet_trt.evaluation.gpu.machine import device_label, is_real
from centernet_trt.evaluation.tables import Table, text_table

MET, MISSED, NOT_JUDGED = "met", "not met", "not judged"
Row = Mapping[str, Any]
_HOPPER = [9, 0]
TARGET_SHAPE = "80x128x128"
ONE_CLASS = "1x128x128"
TARGET_IMAGE = "640x480 to 512x512"


@dataclass(frozen=True)
class Judged:
    """A target, what was found beside it, and the verdict with its reason where there is one."""

    target: str
    wanted: str
    found: str
    verdict: str

    def to_json(self) -> dict[str, str]:
        """The fields as a plain dict."""
        return asdict(self)


def why_not_judged(device: Mapping[str, Any]) -> str:
    """Why times of this device say nothing about the targets, which are an H100's; empty where they do."""
    if not is_real(device["name"]):
        return device_label(dict(device))
    if list(device["compute_capability"]) != _HOPPER:
        return f"the targets are an H100's, this is {device['name']}"
    return ""


def judge_kernels(device: Mapping[str, Any], floor: Mapping[str, float], rows: Sequence[Row]) -> list[Judged]:
    """The kernels' targets.

    Args:
        device: as `machine.device_record` gives it.
        floor: as `GpuFloor.to_json` gives it.
        rows: of the result of `kernels`.
    """
    excuse = why_not_judged(device)

    def seconds(
        step: str, shape: str, batch: int, form: str, cache: str, who: str = "kernel"
    ) -> float | None:
        for row in rows:
            key = (row["step"], row["shape"], row["batch"], row["form"], row["cache"], row["who"])
            if key == (step, shape, batch, form, cache, who):
                return float(row["p50"])
        return None

    graph = seconds("decode", TARGET_SHAPE, 1, "graph", "warm")
    one = seconds("decode", ONE_CLASS, 1, "graph", "warm")
    alone = seconds("decode", TARGET_SHAPE, 1, "alone", "warm")
    eager = seconds("decode", TARGET_SHAPE, 1, "alone", "warm", "PyTorch eager")
    compiled = seconds("decode", TARGET_SHAPE, 1, "alone", "warm", "torch.compile")
    many = seconds("decode", TARGET_SHAPE, 32, "alone", "cold")
    picture = seconds("preprocess", TARGET_IMAGE, 1, "graph", "warm")
    heat = 2 * 32 * 80 * 128 * 128
    return [
        _at_most("decode, batch 1, in a graph", graph, 10e-6, excuse),
        _at_most("decode, batch 1, in a graph (stretch)", graph, 6e-6, excuse),
        _at_least(
            "decode, batch 32, cold: share of the copy bandwidth",
            None if many is None else heat / many / floor["copy"],
            0.6,
            excuse,
        ),
        _at_least("decode, batch 1: PyTorch eager / kernel", _over(eager, alone), 10, excuse),
        _at_least("decode, batch 1: torch.compile / kernel", _over(compiled, alone), 1, excuse),
        _at_most_ratio("decode, batch 1: one class / 80 classes", _over(one, graph), 1, excuse),
        _at_most("preprocess, 640x480 to 512x512, batch 1, in a graph", picture, 5e-6, excuse),
    ]


def judge_bundle(device: Mapping[str, Any], name: str, measured: Mapping[str, Any]) -> list[Judged]:
    """The runtime's targets for one bundle.

    Args:
        device: as `machine.device_record` gives it.
        name: of the bundle.
        measured: `input` (how images are given), medians in seconds of `whole` (wall, batch 1, warm), `network` (alone,
            batch 1) and `host_cpu`, and `throughput`: {batch: images a second over those of the network alone}.
            What was not measured is missing or None.
    """
    excuse = why_not_judged(device)
    whole, network = measured.get("whole"), measured.get("network")
    added = None if whole is None or network is None else whole - network
    late = excuse or ("" if measured.get("input") in ("pinned", "device") else "pageable input: a copy more")
    rows = [
        _at_most(f"{name}: whole less the network alone, batch 1", added, 60e-6, late),
        _at_most(f"{name}: processor time of a call", measured.get("host_cpu"), 50e-6, excuse),
    ]
    shares: Mapping[int, float] = measured.get("throughput") or {}
    for batch, share in sorted(shares.items()):
        what = f"{name}: images a second over the network alone's, batch {batch}"
        rows.append(_at_least(what, share, 0.97, excuse))
    if not shares:
        rows.append(_at_least(f"{name}: images a second over the network alone's", None, 0.97, excuse))
    return rows


def targets_table(judged: Iterable[Judged | Mapping[str, str]]) -> Table:
    """The verdicts as a table."""
    plain = [row.to_json() if isinstance(row, Judged) else dict(row) for row in judged]
    rows = [(row["target"], row["wanted"], row["found"], row["verdict"]) for row in plain]
    return text_table("Targets", ("target", "wanted", "found", "verdict"), rows)


def microseconds(seconds: float) -> str:
    """As text, to a hundredth."""
    return f"{seconds * 1e6:.2f} us"


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def _at_most(target: str, found: float | None, limit: float, excuse: str) -> Judged:
    shown = "" if found is None else microseconds(found)
    return _judged(target, f"<= {microseconds(limit)}", shown, found is not None and found <= limit, excuse)


def _at_most_ratio(target: str, found: float | None, limit: float, excuse: str) -> Judged:
    shown = "" if found is None else f"{found:.2f}"
    # Two medians of the same thing differ by a percent or two.
    good = found is not None and found <= 1.02 * limit
    return _judged(target, f"<= {limit:g}", shown, good, excuse)


def _at_least(target: str, found: float | None, limit: float, excuse: str) -> Judged:
    shown = "" if found is None else f"{found:.2f}"
    return _judged(target, f">= {limit:g}", shown, found is not None and found >= limit, excuse)


def _judged(target: str, wanted: str, found: str, good: bool, excuse: str) -> Judged:
    reason = excuse or ("" if found else "not measured")
    verdict = f"{NOT_JUDGED}: {reason}" if reason else MET if good else MISSED
    return Judged(target, wanted, found or "-", verdict)
