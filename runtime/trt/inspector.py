"""EngineLayer: the layers of an engine, as reported by TensorRT's inspector."""

import json
from dataclasses import dataclass
from typing import Any

from centernet_trt.errors import BackendError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.binding import BindingName
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.trt.engine import LoadedPlan, load_engine


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine, often fused from several nodes of the graph.

    Attributes:
        name: given by TensorRT.
        kind: TensorRT's layer type; empty if unknown.
        outputs: element type and memory format of each output, such as `Half NCHW`, as TensorRT writes them.
        inputs: the same for each input.
    """

    name: str
    kind: str = ""
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


def engine_layers(
    bundle: EngineBundle, device: int | str = 0, binding: BindingName = "auto"
) -> list[EngineLayer]:
    """Return the layers of the plan that runs on this GPU, in execution order.

    Args:
        bundle: with the plan.
        device: index among the visible GPUs, or UUID.
        binding: Python package for the driver.

    Raises:
        BundleError: no plan fits.
        BackendError: TensorRT does not start, refuses the plan, or has no information on its layers.
        CudaError: no GPU, or no usable driver binding.
    """
    with Device.open(device, binding) as opened, opened.current:
        loaded = load_engine(bundle, opened.info)
        try:
            return parse_layers(_information(loaded))
        finally:
            del loaded  # TensorRT's objects must be freed before the CUDA context


def _information(loaded: LoadedPlan) -> str:
    trt: Any = loaded.module
    inspector = loaded.engine.create_engine_inspector()
    text = None if inspector is None else inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    if not text:
        raise BackendError(
            f"{trt.__name__} {trt.__version__} has no information on the layers of {loaded.plan.file}",
            "rebuild the bundle: older builds kept the layers' names only",
        )
    return str(text)


def parse_layers(text: str) -> list[EngineLayer]:
    """Parse the inspector's JSON, in which a layer is a name, or an object, depending on the build.

    Raises:
        BackendError: the text has another form.
    """
    try:
        rows = json.loads(text)["Layers"]
        return [_layer(row) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendError(
            f"expected a list of layers from TensorRT's inspector, got {text[:80]!r} ({type(error).__name__}: {error})",
            "report this message with the version of TensorRT",
        ) from error


def _layer(row: Any) -> EngineLayer:
    if isinstance(row, str):
        return EngineLayer(row)
    kind = str(row.get("LayerType", ""))
    return EngineLayer(row["Name"], kind, _formats(row.get("Outputs", ())), _formats(row.get("Inputs", ())))


def _formats(tensors: Any) -> tuple[str, ...]:
    return tuple(str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "?") for tensor in tensors)
