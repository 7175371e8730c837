"""`centernet-trt doctor`: what is installed and what works."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from centernet_trt.cache import cache_dir
from centernet_trt.cli.console import out, show_lines, write_json
from centernet_trt.errors import CenterNetError
from centernet_trt.evaluation.environment import Driver, Environment, environment

# Purpose of each optional package, and how to install it.
_OPTIONAL = {
    "tensorrt-rtx": ("builds engines, with or without a GPU", "pip install centernet-trt (Linux x86-64)"),
    "tensorrt": (
        "full TensorRT",
        "pip install 'centernet-trt[tensorrt]' --extra-index-url https://pypi.nvidia.com",
    ),
    "cuda-bindings": ("CUDA driver binding", "pip install 'centernet-trt[gpu]'"),
    "nvidia-cuda-nvrtc": ("compiles the kernels", "pip install 'centernet-trt[gpu]'"),
    "nvidia-cuda-runtime": ("CUDA headers", "pip install 'centernet-trt[gpu]'"),
    "pycuda": ("alternative CUDA driver binding", "pip install 'centernet-trt[pycuda]'"),
}


@dataclass(frozen=True)
class Trial:
    """Result of one self-check.

    Attributes:
        name: of what was tried.
        works: whether it worked.
        text: what it did, or why it failed.
    """

    name: str
    works: bool
    text: str


def doctor_command(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report there.")
    ] = None,
) -> None:
    """Report what is installed, what is missing and what works here, for a bug report."""
    found = environment()
    trials = _trials(found)
    out.print(_packages(found))
    show_lines(
        [
            f"Python {found.python}, {found.system}; {found.cpu}, {found.cores} cores",
            f"driver: {_driver(found.driver)}",
            f"cache:  {cache_dir()}",
        ]
    )
    for trial in trials:
        verdict = "[green]works[/]" if trial.works else "[red]fails[/]"
        out.print(f"{verdict}  {trial.name}: {escape(trial.text)}", highlight=False)
    if not found.driver.gpus:
        show_lines(
            [
                "Without a GPU engines are built with TensorRT for RTX, and networks run in ONNX Runtime on the CPU."
            ]
        )
    if json_file is not None:
        rows = [{"name": t.name, "works": t.works, "text": t.text} for t in trials]
        write_json(json_file, {**found.to_json(), "cache": str(cache_dir()), "trials": rows})


def _packages(found: Environment) -> Table:
    table = Table(title="packages", title_justify="left")
    for column in ("package", "version", "purpose, how to install it"):
        table.add_column(column)
    for name, version in found.packages.items():
        purpose, install = _OPTIONAL.get(name, ("", ""))
        if version is None and not purpose:
            continue  # only matters if it is installed
        table.add_row(
            name,
            version or "[yellow]missing[/]",
            purpose if version else escape(f"{purpose}: {install}"),
        )
    return table


def _driver(driver: Driver) -> str:
    if driver.cuda is None or driver.problem:
        return driver.problem
    gpus = "; ".join(
        f"{gpu.name}, compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}, "
        f"{gpu.memory / 2**30:.0f} GiB"
        for gpu in driver.gpus
    )
    return f"supports CUDA {driver.cuda[0]}.{driver.cuda[1]}; {gpus}"


def _trials(found: Environment) -> list[Trial]:
    from centernet_trt.builder import self_check  # heavy: imported where it is used

    trials = [_try("ONNX Runtime", self_check.try_onnxruntime)]
    if found.packages["tensorrt-rtx"]:
        trials.append(_try("TensorRT for RTX", lambda: self_check.try_tensorrt("rtx")))
    if found.packages["tensorrt"]:
        trials.append(_try("TensorRT", lambda: self_check.try_tensorrt("tensorrt")))
    return trials


def _try(name: str, function: Callable[[], str]) -> Trial:
    try:
        return Trial(name, True, function())
    except CenterNetError as error:
        return Trial(name, False, " ".join(str(error).split()))
