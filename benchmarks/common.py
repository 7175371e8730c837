"""The GPU that a measurement runs on: what it is, and the rule that only a real one fills the folder of results."""

import json
import tempfile
from pathlib import Path
from typing import Any

from centernet_trt.errors import CudaError, InputError
from centernet_trt.evaluation.environment import environment
from centernet_trt.runtime.driver import Device

STANDIN_NAME = "stand-in"
"""The name by which the tests' driver over host memory calls its device."""
_L2_CACHE_SIZE = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
_RESULTS = ("evaluation", "results")


def is_real(name: str) -> bool:
    """Whether a device of this name is a GPU."""
    return name != STANDIN_NAME


def device_label(record: dict[str, Any]) -> str:
    """The device's name as tables and headings show it; what is no GPU cannot be taken for one."""
    if is_real(record["name"]):
        return str(record["name"])
    return "STAND-IN DRIVER, no GPU: these times mean nothing"


def l2_bytes(device: Device) -> int:
    """Size of the device's L2 cache in bytes.

    Raises:
        CudaError: the driver does not say.
    """
    from cuda.bindings import driver

    attribute = driver.CUdevice_attribute(_L2_CACHE_SIZE)
    status, size = driver.cuDeviceGetAttribute(attribute, device.info.index)
    if int(status) != 0 or size <= 0:
        raise CudaError(
            f"the driver does not say how large the L2 cache is: {status.name}, {size}",
            "measure with a warm L2 cache only",
        )
    return int(size)


def device_record(device: Device) -> dict[str, Any]:
    """What a result says about its device: name, size, driver, and the binding by which it was reached."""
    info = device.info
    return {
        "name": info.name,
        "real": is_real(info.name),
        "compute_capability": list(info.capability),
        "multiprocessors": info.multiprocessors,
        "memory": info.memory,
        "l2_bytes": l2_bytes(device),
        "driver_cuda": [info.driver_version // 1000, info.driver_version % 1000 // 10],
        "binding": device.binding.name,
    }


def result(kind: str, device: dict[str, Any], command: str, **content: Any) -> dict[str, Any]:
    """The head that every GPU result has, and its content."""
    return {
        "schema": 1,
        "kind": kind,
        "command": command,
        "device": device,
        **content,
        "environment": environment().to_json(),
    }


def check_target(path: Path, device: dict[str, Any]) -> None:
    """Keep what no GPU measured out of the folder of results.

    Args:
        path: of a file, or a folder, to be written.
        device: as `device_record` gives it.

    Raises:
        InputError: the path lies in `evaluation/results`, and the device is the stand-in.
    """
    parts = path.resolve().parts
    inside = any(parts[at : at + 2] == _RESULTS for at in range(len(parts)))
    if inside and not is_real(device["name"]):
        raise InputError(
            f"{path} is a folder of results, and the device {device['name']!r} is no GPU",
            "write a dry run's result elsewhere, with --json or --output",
        )


def write_result(path: Path, data: dict[str, Any]) -> None:
    """Write a result as JSON, whole or not at all, without the names of this machine's folders.

    Raises:
        InputError: see `check_target`; or the file cannot be written.
    """
    check_target(path, data["device"])
    scratch = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(without_folders(json.dumps(data, indent=1)) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def without_folders(text: str) -> str:
    """A text in which the working folder, the folder of temporary files and the home folder are not named."""
    names = {f"{Path.cwd()}/": "", str(Path.cwd()): ".", tempfile.gettempdir(): "TMP", str(Path.home()): "~"}
    for folder, name in names.items():
        if len(folder) > 1:  # "/" is everywhere
            text = text.replace(folder, name)
    return text
