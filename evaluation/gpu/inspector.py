"""What an engine on a GPU says its layers became: TensorRT's engine inspector, and how many convolutions are int8."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_MOST_LAYERS = 150
_KEPT = ("Name", "LayerType", "ParameterType", "TacticName")


def inspect_engine(module: Any, engine: Any) -> dict[str, Any]:
    """Counts of layers, convolutions and int8 convolutions, and what the inspector says of each layer.

    Args:
        module: TensorRT's.
        engine: deserialised; built with detailed profiling verbosity, or there are only names.

    Returns:
        `layers`, `convolutions`, `int8_convolutions` and `told` (layer by layer, 150 at most), or `problem`.
    """
    if not hasattr(engine, "create_engine_inspector"):
        return {"problem": f"{module.__name__} {module.__version__} has no engine inspector"}
    try:
        inspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(module.LayerInformationFormat.JSON)
    except Exception as error:  # noqa: BLE001 - it is asked for a report only
        return {"problem": f"the inspector fails: {error}"}
    try:
        told = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return {"problem": f"the inspector gives no JSON: {str(text)[:200]!r}"}
    return count_layers(told)


def count_layers(told: Sequence[str | Mapping[str, Any]]) -> dict[str, Any]:
    """Count layers as the inspector tells them: names alone, or with type and formats of inputs and outputs."""
    convolutions = [layer for layer in told if is_convolution(layer)]
    return {
        "layers": len(told),
        "detailed": any(isinstance(layer, Mapping) for layer in told),
        "convolutions": len(convolutions),
        "int8_convolutions": sum(map(is_int8, convolutions)),
        "told": [_kept(layer) for layer in told[:_MOST_LAYERS]],
    }


def _kept(layer: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """What tells the precision of a layer; the rest (shapes, strides, weights) would be megabytes."""
    if isinstance(layer, str):
        return layer
    found: dict[str, Any] = {key: layer[key] for key in _KEPT if key in layer}
    for side in ("Inputs", "Outputs"):
        found[side] = _formats(layer.get(side, []))
    return found


def _formats(tensors: Any) -> list[str]:
    return [str(one.get("Format/Datatype", "")) for one in tensors if isinstance(one, Mapping)]


def is_convolution(layer: str | Mapping[str, Any]) -> bool:
    """By its type, its name, or the name of its kernel."""
    if isinstance(layer, str):
        words = layer
    else:
        words = " ".join(
            str(layer.get(key, "")) for key in ("LayerType", "Name", "ParameterType", "TacticName")
        )
    return "conv" in words.lower()


def is_int8(layer: str | Mapping[str, Any]) -> bool:
    """Whether any of its inputs is int8 by its format, or its kernel is named so; never known from a name alone."""
    if isinstance(layer, str):
        return False
    words = " ".join([*_formats(layer.get("Inputs", [])), str(layer.get("TacticName", ""))]).lower()
    return any(word in words for word in ("int8", "i8i8", "s8s8", "imma"))
