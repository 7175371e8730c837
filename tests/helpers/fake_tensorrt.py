"""A stand-in for `tensorrt` (10, 11) and `tensorrt_rtx`, as far as the runtime uses them: ONNX Runtime plays the network.

It works on the stand-in driver's memory, which is host memory, in the order of its streams, and can be recorded into
its graphs. It is stricter than TensorRT: what TensorRT leaves undefined is refused here, or kept in `Faults.broken`.
"""

import ctypes
import json
import weakref
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import ModuleType
from typing import Any

import numpy as np
import onnx

MAGIC = b"FAKEPLAN"
WORKSPACE = 4096
_NUMPY = {"FLOAT": np.float32, "HALF": np.float16}
_ONNX = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}


class ILogger:
    """As TensorRT's: subclassed by the user."""

    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        pass

    def log(self, severity: "ILogger.Severity", msg: str) -> None:
        raise NotImplementedError


class IProfiler:
    def __init__(self) -> None:
        pass

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(Enum):
    FLOAT = 0
    HALF = 1


class LayerInformationFormat(Enum):
    ONELINE = 0
    JSON = 1


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


@dataclass
class Faults:
    """Failures that the fake is to produce from now on, and misuse by the caller that it saw."""

    refuse_enqueue: int = 0  # so many times, after `skip_enqueues`
    skip_enqueues: int = 0
    refuse_context: bool = False
    refuse_shape: bool = False
    refuse_plan: bool = False
    uncapturable: bool = False
    synchronise_in_enqueue: bool = False  # as a plugin that is not made for graphs
    broken: list[str] = field(default_factory=list)
    enqueues: int = 0
    replays: int = 0
    profiles: list[int] = field(default_factory=list)  # of every run, in order


FAULTS = Faults()
LIVE: "weakref.WeakSet[Any]" = weakref.WeakSet()
_driver: Any = None


def driver() -> Any:
    """The stand-in driver's library, for what a library of C++ does by itself."""
    global _driver
    if _driver is None:
        _driver = ctypes.CDLL("libcuda.so.1")
    return _driver


def has_context() -> bool:
    current = ctypes.c_void_p()
    driver().cuCtxGetCurrent(ctypes.byref(current))
    return bool(current.value)


def fake_plan(model: bytes, flavour: str, version: str, profiles: list[Any]) -> bytes:
    """The content of a plan file that the fake loads; `profiles`: the input's smallest, tuned and largest shape of each."""
    return MAGIC + json.dumps([flavour, version, profiles]).encode() + b"\n" + model


class IHostMemory(bytes):
    """Read by way of the buffer protocol, as TensorRT's."""


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        LIVE.add(self)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        module = MODULES[-1]
        head, _, model = bytes(serialized_engine).partition(b"\n")
        if not head.startswith(MAGIC) or FAULTS.refuse_plan:
            self._logger.log(ILogger.Severity.ERROR, "[fake] Magic tag does not match")
            return None
        flavour, version, profiles = json.loads(head.removeprefix(MAGIC))
        if [flavour, version] != [module.flavour, module.__version__]:
            self._logger.log(ILogger.Severity.ERROR, f"[fake] the engine was built by {flavour} {version}")
            return None
        if not has_context():
            self._logger.log(ILogger.Severity.ERROR, "[fake] no CUDA context is current")
            return None
        return (ICudaEngine10 if is_10(module) else ICudaEngine)(self, model, profiles)


class ICudaEngine:
    def __init__(self, runtime: Runtime, model: bytes, profiles: list[Any]) -> None:
        import onnxruntime

        graph = onnx.load_from_string(model).graph
        self.runtime, self._logger = runtime, runtime._logger
        self._types = {v.name: _ONNX[v.type.tensor_type.elem_type] for v in (*graph.input, *graph.output)}
        self._inputs = [v.name for v in graph.input]
        self._outputs = [v.name for v in graph.output]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.layers = [node.name for node in graph.node]
        self.contexts = 0
        self._profiles = profiles
        LIVE.add(self)

    @property
    def num_io_tensors(self) -> int:
        return len(self._types)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name in self._inputs
        return [tuple(shape) for shape in self._profiles[profile_index]]

    @property
    def device_memory_size_v2(self) -> int:
        return WORKSPACE

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._types[name]]

    def create_engine_inspector(self) -> "EngineInspector":
        return EngineInspector(self)

    def create_runtime_config(self) -> "IRuntimeConfig":
        return IRuntimeConfig()

    def create_execution_context(
        self,
        strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC,
        runtime_config: "IRuntimeConfig | None" = None,
    ) -> "IExecutionContext | None":
        if FAULTS.refuse_context or not has_context():
            self._logger.log(ILogger.Severity.ERROR, "[fake] out of memory for the context")
            return None
        config = runtime_config or IRuntimeConfig(strategy)
        if config.strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            FAULTS.broken.append("a context with memory of its own was made")
        if config.full and MODULES[-1].flavour == "rtx":
            FAULTS.broken.append("a context was made without a runtime configuration")
        self.contexts += 1
        kind = RtxExecutionContext if MODULES[-1].flavour == "rtx" else IExecutionContext
        return kind(self, config, first=self.contexts == 1)


class ICudaEngine10(ICudaEngine):
    """What TensorRT 10 has beside the above, and 11 removed (NVIDIA's list of removed Python APIs); RTX never had it."""

    @property
    def device_memory_size(self) -> int:
        return WORKSPACE

    def get_device_memory_size_for_profile(self, profile_index: int) -> int:
        return WORKSPACE


class IInt8EntropyCalibrator2:
    """Of TensorRT 10 alone, as every calibrator."""


class BuilderFlag(Enum):
    """Of TensorRT 10: the flags of weak typing."""

    FP16 = 0
    INT8 = 1


class EngineInspector:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        LIVE.add(self)

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format is LayerInformationFormat.JSON
        outputs = [{"Name": "t", "Format/Datatype": "Float NCHW"}]
        rows = [{"Name": name, "LayerType": "conv", "Outputs": outputs} for name in self._engine.layers]
        return json.dumps({"Layers": rows, "Bindings": []})


class IRuntimeCache:
    def __init__(self) -> None:
        self.content = b""
        LIVE.add(self)

    def deserialize(self, blob: bytes) -> bool:
        if not bytes(blob).startswith(b"KERNELS "):
            return False
        self.content = bytes(blob)
        return True

    def serialize(self) -> IHostMemory:
        if not has_context():
            FAULTS.broken.append("a runtime cache was serialised without a context")
        return IHostMemory(self.content)

    def reset(self) -> bool:
        self.content = b""
        return True


class IRuntimeConfig:
    def __init__(self, strategy: ExecutionContextAllocationStrategy | None = None) -> None:
        self.full = strategy is not None
        self.strategy = strategy or ExecutionContextAllocationStrategy.STATIC
        self.cuda_graph_strategy = CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cache: IRuntimeCache | None = None
        LIVE.add(self)

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self.cache = cache
        return True


_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig, first: bool) -> None:
        self.engine, self._logger, self._config = engine, engine._logger, config
        self.active_optimization_profile = 0 if first else -1
        self._memory = 0
        self._shape: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}
        self._generation = 0
        self.profiler: IProfiler | None = None
        self.enqueue_emits_profile = True
        LIVE.add(self)

    def _refuse(self, why: str) -> bool:
        self._logger.log(ILogger.Severity.ERROR, f"[fake] {why}")
        return False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        status = ctypes.c_int()
        driver().cuStreamIsCapturing(ctypes.c_void_p(stream_handle), ctypes.byref(status))
        if status.value:
            FAULTS.broken.append("the optimisation profile was switched while its stream was recorded")
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self._refuse(f"there is no profile {profile_index}")
        self.active_optimization_profile = profile_index
        self._shape = None  # TensorRT forgets the shapes with the profile
        self._generation += 1
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % 256 or size < WORKSPACE:
            FAULTS.broken.append(f"device memory {memory:#x} of {size} bytes")
        self._memory = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self.engine._inputs or len(shape) != 4 or FAULTS.refuse_shape:
            return self._refuse(f"shape {shape} of {name} is outside the profile")
        if self.active_optimization_profile < 0:
            return self._refuse("no profile was set")
        smallest, _, largest = self.engine._profiles[self.active_optimization_profile]
        if not all(low <= side <= high for low, side, high in zip(smallest, shape, largest, strict=True)):
            return self._refuse(f"shape {shape} is outside profile {self.active_optimization_profile}")
        self._shape = tuple(shape)
        self._generation += 1  # graphs that were recorded before are invalid now
        return True

    def infer_shapes(self) -> list[str]:
        return [] if self._shape else list(self.engine._inputs)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._shape is not None
        if name in self.engine._inputs:
            return self._shape
        declared = {v.name: v.shape for v in self.engine.session.get_outputs()}[name]
        known = _shapes(self.engine, self._shape)
        assert len(declared) == 4
        return known[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine._types:
            return self._refuse(f"there is no tensor {name}")
        if memory % 256:
            return self._refuse(f"the address of {name} is not aligned")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        FAULTS.enqueues += 1
        if FAULTS.skip_enqueues > 0:
            FAULTS.skip_enqueues -= 1
        elif FAULTS.refuse_enqueue > 0:
            FAULTS.refuse_enqueue -= 1
            return self._refuse("IExecutionContext::enqueueV3: refused as the test asked")
        if not has_context():
            return self._refuse("no CUDA context is current")
        if self.active_optimization_profile < 0 or not self._memory or self._shape is None:
            return self._refuse("no profile, memory or shape was set")
        if set(self._addresses) != set(self.engine._types):
            return self._refuse("not all addresses were set")
        if FAULTS.synchronise_in_enqueue and driver().cuStreamSynchronize(ctypes.c_void_p(stream_handle)):
            return self._refuse("Cuda failure: operation not permitted when stream is capturing")
        self._check_capture(stream_handle)
        work = _Work(self)
        status = driver().cuLaunchHostFunc(ctypes.c_void_p(stream_handle), work.callback, None)
        if self.profiler is not None:  # with one, TensorRT waits and reports
            driver().cuStreamSynchronize(ctypes.c_void_p(stream_handle))
            for node in self.engine.layers:
                self.profiler.report_layer_time(node, 0.25)
        return status == 0 or self._refuse(f"Cuda failure: {status}")

    def _check_capture(self, stream_handle: int) -> None:
        status = ctypes.c_int()
        driver().cuStreamIsCapturing(ctypes.c_void_p(stream_handle), ctypes.byref(status))
        eager = DynamicShapesKernelSpecializationStrategy.EAGER
        if status.value and not self._config.full:
            if self._config.cuda_graph_strategy is not CudaGraphStrategy.DISABLED:
                FAULTS.broken.append("captured with TensorRT's own graph on")
            if self._config.dynamic_shapes_kernel_specialization_strategy is not eager:
                FAULTS.broken.append("captured with kernels that may be fallbacks")
        if not status.value and self._config.cache is not None:
            self._config.cache.content = b"KERNELS " + str(self._shape).encode()


class RtxExecutionContext(IExecutionContext):
    """TensorRT for RTX can be asked; TensorRT 10.13 cannot."""

    def is_stream_capturable(self, stream: int) -> bool:
        return not FAULTS.uncapturable


_keep: list["_Work"] = []  # queued work and graphs call back until the process ends


class _Work:
    """One enqueue: addresses and shapes as they are now, as a graph would keep them."""

    def __init__(self, context: IExecutionContext) -> None:
        self._context, self._generation = weakref.ref(context), context._generation
        engine, shape = context.engine, context._shape
        assert shape is not None
        known = _shapes(engine, shape)
        self._engine = weakref.ref(engine)
        self._memory, self._profile = context._memory, context.active_optimization_profile
        self._arrays = {
            name: (context._addresses[name], known[name], _NUMPY[engine._types[name]]) for name in known
        }
        self._inputs = engine._inputs
        self.callback = _CALLBACK(self._run)
        _keep.append(self)

    def _run(self, _: Any) -> None:
        try:
            self._compute()
        except BaseException as error:  # noqa: BLE001 - there is no caller to raise to
            FAULTS.broken.append(f"the network failed: {error!r}")

    def _compute(self) -> None:
        FAULTS.replays += 1
        FAULTS.profiles.append(self._profile)
        context, engine = self._context(), self._engine()
        if context is None or engine is None:
            FAULTS.broken.append("the network ran after its context was destroyed")
            return
        if context._generation != self._generation:
            FAULTS.broken.append("a graph ran whose context has another shape by now")
        ctypes.memset(self._memory, 0x5A, WORKSPACE)
        binding = engine.session.io_binding()
        for name, (address, shape, kind) in self._arrays.items():
            bind = binding.bind_input if name in self._inputs else binding.bind_output
            bind(name, "cpu", 0, kind, shape, address)
        engine.session.run_with_iobinding(binding)


def _shapes(engine: ICudaEngine, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors; found once for each input shape by running zeros."""
    cache = engine.__dict__.setdefault("shape_cache", {})
    if shape not in cache:
        (name,) = engine._inputs
        zeros = np.zeros(shape, dtype=_NUMPY[engine._types[name]])
        found = engine.session.run(engine._outputs, {name: zeros})
        cache[shape] = {name: shape} | {
            out: array.shape for out, array in zip(engine._outputs, found, strict=True)
        }
    return dict(cache[shape])


MODULES: list[Any] = []
_COMMON = (
    ILogger, IProfiler, TensorIOMode, DataType, ExecutionContextAllocationStrategy,
    Runtime, ICudaEngine, IExecutionContext, IHostMemory, EngineInspector, LayerInformationFormat,
)  # fmt: skip
_ONLY_10 = (IInt8EntropyCalibrator2, BuilderFlag)
_RTX_ONLY = (IRuntimeConfig, IRuntimeCache, CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy)


def is_10(module: Any) -> bool:
    """Whether the module plays full TensorRT before 11."""
    return bool(module.flavour == "tensorrt" and int(module.__version__.split(".")[0]) < 11)


def make_module(flavour: str, version: str) -> ModuleType:
    """The module of one flavour; the last one made is the one that answers.

    What TensorRT 11 removed is there when it plays 10, and not when it plays 11, so that using it fails.
    """
    made: Any = ModuleType("tensorrt_rtx" if flavour == "rtx" else "tensorrt")
    made.__version__, made.flavour = version, flavour
    for kind in (*_COMMON, *(_RTX_ONLY if flavour == "rtx" else ())):
        setattr(made, kind.__name__, kind)
    if flavour == "rtx":
        made.IExecutionContext = RtxExecutionContext
    if is_10(made):
        made.ICudaEngine = ICudaEngine10
        for kind in _ONLY_10:
            setattr(made, kind.__name__, kind)
    if flavour == "tensorrt":
        made.init_libnvinfer_plugins = lambda logger, namespace: True
    MODULES.append(made)
    return made
