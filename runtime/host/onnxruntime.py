"""Open and run ONNX Runtime sessions: in fast mode, faithful to the types of the graph, or faithful to Q/DQ."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from centernet_trt.errors import BackendError
from centernet_trt.runtime.manifest import Manifest, Mode, head_shapes

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = [
    "Mode",
    "OnnxRuntimeExecutor",
    "SessionMode",
    "allocate_heads",
    "half_tensors",
    "open_session",
    "round_every_tensor",
]

SessionMode = Mode | Literal["qdq"]
"""How a session computes.

`fast`: ONNX Runtime optimises, which on a CPU turns fp16 into fp32. `faithful`: no optimisation, and the result of
every node is rounded to its type. `qdq`: optimises, but for what knows Q/DQ, so that fp32 nodes between Q/DQ run in
fp32 and Q/DQ as ONNX defines them; its threads do not spin.
"""


def allocate_heads(
    manifest: Manifest, batch: int, height: int, width: int
) -> dict[str, npt.NDArray[np.floating]]:
    """Allocate host arrays for the heads, by name, in the manifest's element types."""
    dtypes = {head.name: np.dtype(head.dtype) for head in manifest.heads}
    return {
        name: np.empty(shape, dtype=dtypes[name])
        for name, shape in head_shapes(manifest, batch, height, width).items()
    }


class OnnxRuntimeExecutor:
    """Runs `model.onnx` of a bundle on the CPU; `run` may be called from many threads at once.

    `fast` lets ONNX Runtime optimise, which runs an fp16 graph in fp32. `faithful` switches that off, so that every
    operation rounds to its own type, as the engine does: slower, and the figure to quote for fp16 and int8 accuracy.
    """

    def __init__(
        self, model: Path, manifest: Manifest, mode: Mode = "fast", threads: int | None = None
    ) -> None:
        """Load the graph.

        Args:
            model: path of the bundle's typed graph.
            manifest: of the same bundle.
            mode: see `SessionMode`.
            threads: threads of one `run`; None for ONNX Runtime's own choice.

        Raises:
            BackendError: ONNX Runtime is missing or refuses the graph.
        """
        self._manifest = manifest
        self._mode = mode
        self._session: Any = open_session(model, mode, threads)

    @property
    def note(self) -> str:
        """Note for the user that TensorRT was not run."""
        plan = "the plan was built, not run" if self._manifest.plans else "no plan was built"
        return f"network ran in ONNX Runtime ({self._mode} mode); {plan}"

    def run(
        self,
        inputs: Mapping[str, npt.NDArray[np.floating]],
        outputs: Mapping[str, npt.NDArray[np.floating]],
    ) -> None:
        """Run the network.

        Args:
            inputs: C-contiguous arrays of the manifest's types, by name.
            outputs: likewise; they are filled.

        Raises:
            BackendError: ONNX Runtime failed; its message is included.
        """
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            raise BackendError(f"ONNX Runtime failed: {error}") from error

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def open_session(
    model: "Path | bytes | ModelProto",
    mode: SessionMode = "fast",
    threads: int | None = None,
    *,
    low_memory: bool = False,
    in_order: bool = False,
) -> Any:
    """Open an onnxruntime.InferenceSession on the CPU.

    Args:
        model: an `.onnx` file, whose weights may be in files beside it (the only way above 2 GB); its bytes; or the
            model itself, which `faithful` changes. It needs the type of every fp16 tensor in `value_info`.
        mode: see `SessionMode`.
        threads: of one run; None for ONNX Runtime's own choice.
        low_memory: map weights in files instead of copying them, and keep no arena: for models of gigabytes. It
            switches optimisation off, which costs up to half of the speed.
        in_order: run the nodes in the graph's order, so that a tensor whose last reader comes early is freed early.

    Raises:
        BackendError: ONNX Runtime is missing or refuses the graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"onnxruntime cannot be imported: {error}", "pip install 'onnxruntime>=1.31'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would print as an error is in the exception
    if threads is not None:
        options.intra_op_num_threads = threads
    if in_order:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if mode == "qdq":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if mode == "faithful" or low_memory:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if low_memory:
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        source = _rounded(model, options) if mode == "faithful" else _loadable(model)
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise BackendError(
            f"ONNX Runtime refuses the graph: {error}",
            "check whether the graph is newer than this ONNX Runtime supports",
        ) from error


def _loadable(model: "Path | bytes | ModelProto") -> str | bytes:
    if isinstance(model, Path):
        return str(model)
    return model if isinstance(model, bytes) else model.SerializeToString()


def _rounded(model: "Path | bytes | ModelProto", options: Any) -> str | bytes:
    """The graph with every fp16 result rounded; weights in files beside it stay there."""
    import onnx

    if isinstance(model, Path):
        graph = onnx.load(model, load_external_data=False)
    elif isinstance(model, bytes):
        graph = onnx.load_from_string(model)
    else:
        graph = model
    if not half_tensors(graph):
        return _loadable(model)
    round_every_tensor(graph)
    if isinstance(model, Path):
        # A session made from bytes does not know the folder of the external weights.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(model.parent)
        )
    return bytes(graph.SerializeToString())


def half_tensors(model: "ModelProto") -> set[str]:
    """Names of the float16 tensors that nodes may compute, by `value_info` and the outputs."""
    from onnx import TensorProto

    values = (*model.graph.value_info, *model.graph.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT16}


def round_every_tensor(model: "ModelProto") -> None:
    """Put two Identity nodes behind every float16 tensor that a node computes (in place).

    The values are the same by ONNX's definition; run without optimisation, ONNX Runtime's come to agree with it.
    Tensor names stay. The model must state the type of every tensor (`value_info`), as a bundle's model does.
    """
    from onnx import NodeProto, helper

    graph, half = model.graph, half_tensors(model)
    nodes: list[NodeProto] = []
    for node in graph.node:
        behind = []
        for index, name in enumerate(node.output):
            if name in half:
                raw, once = f"{name}/before_rounding", f"{name}/between_rounding"
                node.output[index] = raw
                behind += [
                    helper.make_node("Identity", [raw], [once]),
                    helper.make_node("Identity", [once], [name]),
                ]
        nodes += [node, *behind]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]
