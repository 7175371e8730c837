"""The layers of an engine, as TensorRT's inspector reports them."""

import json
from dataclasses import dataclass
from typing import Any

from centernet_trt.errors import BackendError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.binding import BindingName
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.trt.engine import Loaded, load_engine


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine, often several of the graph's.

    Attributes:
        name: by TensorRT.
        kind: TensorRT's word for what it does; empty where it does not say.
        outputs: type and memory format of each result, such as `Half NCHW`, as TensorRT writes it.
        inputs: the same of what it reads.
    """

    name: str
    kind: str = ""
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()


def engine_layers(
    bundle: EngineBundle, device: int | str = 0, binding: BindingName = "auto"
) -> list[EngineLayer]:
    """The layers of the plan that runs on this GPU, in the order of their running.

    Raises:
        BundleError: no plan fits.
        BackendError: TensorRT does not start, refuses the plan, or says nothing of its layers.
        CudaError: no GPU, or no package to reach it.
    """
    with Device.open(device, binding) as opened, opened.current:
        loaded = load_engine(bundle, opened.info)
        try:
            return parse_layers(_information(loaded))
        finally:
            del loaded  # TensorRT's objects go before the context


def _information(loaded: Loaded) -> str:
    trt: Any = loaded.module
    inspector = loaded.engine.create_engine_inspector()
    text = None if inspector is None else inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    if not text:
        raise BackendError(
            f"{trt.__name__} {trt.__version__} says nothing of the layers of {loaded.plan.file}",
            "build the bundle again: older builds kept no more than the layers' names",
        )
    return str(text)


def parse_layers(text: str) -> list[EngineLayer]:
    """The inspector's JSON as layers; a layer is a name, or a table of what was kept of it at build time.

    Raises:
        BackendError: it is something else.
    """
    try:
        rows = json.loads(text)["Layers"]
        return [_layer(row) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendError(
            f"TensorRT's inspector gives no list of layers: {type(error).__name__}: {error}; it begins {text[:80]!r}",
            "please report it with the version of TensorRT",
        ) from error


def _layer(row: Any) -> EngineLayer:
    if isinstance(row, str):
        return EngineLayer(row)
    kind = str(row.get("LayerType", ""))
    return EngineLayer(row["Name"], kind, _formats(row.get("Outputs", ())), _formats(row.get("Inputs", ())))


def _formats(tensors: Any) -> tuple[str, ...]:
    return tuple(str(one.get("Format/Datatype") or one.get("Datatype") or "?") for one in tensors)
