"""An execution context bound to an input shape."""

from collections.abc import Mapping
from typing import Any

from centernet_trt.errors import BackendError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.cuda.resources import Stream
from centernet_trt.runtime.manifest import Manifest, Shape, head_shapes
from centernet_trt.runtime.profiles import choose_profile
from centernet_trt.runtime.trt import logging as trt_log
from centernet_trt.runtime.trt.engine import KernelCache, Loaded, failure, load_engine


class TensorRTExecutor:
    """A bundle's plan on one GPU; `context` gives the network bound to one shape and one set of addresses."""

    def __init__(self, bundle: EngineBundle, device: Device) -> None:
        """Load the plan that fits this GPU and the TensorRT installed here.

        Raises:
            BundleError: no plan fits, or its tensors are not those of the manifest.
            BackendError: TensorRT is missing, does not start or refuses the plan.
        """
        self.manifest: Manifest = bundle.manifest
        self.device = device
        self._config: Any = None
        self._kernels: KernelCache | None = None
        with device.current:
            self._loaded: Loaded | None = load_engine(bundle, device.info)
            self.plan = self._loaded.plan
            self.workspace_bytes = int(self._loaded.engine.device_memory_size_v2)
            if self._loaded.flavour.finishes_kernels:
                self._config = _runtime_config(self._loaded)
                self._kernels = KernelCache(self._config, self.plan, device.info)

    @property
    def loaded(self) -> Loaded:
        """TensorRT's objects; BackendError once closed."""
        if self._loaded is None:
            raise BackendError("the executor is closed", "load the bundle again")
        return self._loaded

    def output_shapes(self, batch: int, height: int, width: int) -> dict[str, Shape]:
        """Shapes (N, C, H, W) of the heads for an input of `batch` images of height x width pixels."""
        return head_shapes(self.manifest, batch, height, width)

    def context(
        self, shape: tuple[int, int, int], addresses: Mapping[str, int], workspace: int, stream: Stream
    ) -> "NetworkContext":
        """The network for one input shape and fixed addresses.

        Args:
            shape: batch, height and width of the input.
            addresses: device address of every input and output, by tensor name.
            workspace: device address of `workspace_bytes`; contexts that never run at once may share it.
            stream: that it will run on.

        Raises:
            InputError: no profile has the shape.
            BackendError: TensorRT refuses the shape or an address.
        """
        choose_profile(self.manifest.profiles, *shape)
        return NetworkContext(self, shape, addresses, workspace, stream)

    def new_context(self) -> Any:
        """TensorRT's IExecutionContext without memory of its own; None when it cannot be made."""
        loaded = self.loaded
        if self._config is not None:
            return loaded.engine.create_execution_context(runtime_config=self._config)
        strategy: Any = loaded.module.ExecutionContextAllocationStrategy.USER_MANAGED
        return loaded.engine.create_execution_context(strategy=strategy)

    def save_kernels(self) -> None:
        """Keep the kernels that TensorRT for RTX has compiled so far for the next start; nothing on full TensorRT."""
        if self._kernels is not None:
            with self.device.current:
                self._kernels.save()

    def close(self) -> None:
        """Free the engine; contexts are closed before. May be called twice."""
        if self._loaded is None or self.device.foreign_process:
            return
        with self.device.current:
            try:
                if self._kernels is not None:
                    self._kernels.close()
            finally:
                # The engine goes before the runtime that made it.
                self._kernels = self._config = None
                runtime = self._loaded.runtime
                self._loaded = None
                del runtime


class NetworkContext:
    """The network bound to one input shape and to addresses; close it before its executor."""

    def __init__(
        self,
        executor: TensorRTExecutor,
        shape: tuple[int, int, int],
        addresses: Mapping[str, int],
        workspace: int,
        stream: Stream,
    ) -> None:
        """Use `TensorRTExecutor.context`."""
        self._executor = executor
        self._module = executor.loaded.module
        batch, height, width = shape
        record = executor.manifest.input
        self._what = f"an input of {batch}x{record.channels}x{height}x{width}"
        self._context: Any = None
        try:
            with executor.device.current, trt_log.capture() as lines:
                self._make(shape, workspace, stream, lines)
            self.bind(addresses)
        except BaseException:
            self.close()
            raise

    def _make(
        self, shape: tuple[int, int, int], workspace: int, stream: Stream, lines: list[trt_log.LogLine]
    ) -> None:
        executor, (batch, height, width) = self._executor, shape
        record = executor.manifest.input
        self._context = executor.new_context()
        if self._context is None:
            raise self._failure("cannot make an execution context", lines)
        profile = choose_profile(executor.manifest.profiles, batch, height, width)
        # It may copy on the stream: that is the one the network will run on, and is not being recorded here.
        if self._context.active_optimization_profile != profile and not (
            self._context.set_optimization_profile_async(profile, stream.number)
        ):
            raise self._failure(f"refuses its optimisation profile {profile}", lines)
        self._context.set_device_memory(workspace, executor.workspace_bytes)
        if not self._context.set_input_shape(record.name, (batch, record.channels, height, width)):
            raise self._failure(f"refuses {self._what}", lines)
        self._check_shapes(executor.output_shapes(batch, height, width), lines)

    def _check_shapes(self, wanted: Mapping[str, Shape], lines: list[trt_log.LogLine]) -> None:
        missing = self._context.infer_shapes()
        if missing:
            raise self._failure(f"cannot infer the shapes of {missing}", lines)
        for name, shape in wanted.items():
            found = tuple(self._context.get_tensor_shape(name))
            if found != shape:
                raise self._failure(f"gives {name!r} the shape {found}, the manifest says {shape}", lines)

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Set the device address of every tensor; not while a graph of this context is in use."""
        with trt_log.capture() as lines:
            for name, address in addresses.items():
                if not self._context.set_tensor_address(name, address):
                    raise self._failure(f"refuses the address of {name!r}", lines)

    def enqueue(self, stream: Stream) -> None:
        """Enqueue the network.

        Raises:
            BackendError: TensorRT refused; within a capture the recording is then worthless.
        """
        with self._executor.device.current, trt_log.capture() as lines:
            if not self._context.execute_async_v3(stream.number):
                raise self._failure(f"refuses to run {self._what}", lines)

    def report_layers_to(self, profiler: Any) -> None:
        """Have TensorRT measure every layer from now on, and wait for each; `profiler` is one of its IProfilers."""
        self._context.profiler = profiler

    def capturable(self, stream: Stream) -> bool:
        """Whether TensorRT says that its work can be recorded into a CUDA graph; full TensorRT is not asked."""
        if not hasattr(self._context, "is_stream_capturable"):
            return True
        with self._executor.device.current:
            return bool(self._context.is_stream_capturable(stream.number))

    def close(self) -> None:
        """Free it. May be called twice; in a fork of the process it does nothing."""
        if self._context is None or self._executor.device.foreign_process:
            return
        with self._executor.device.current:
            self._context = None

    def _failure(self, what: str, lines: list[trt_log.LogLine]) -> BackendError:
        return failure(self._module, f"TensorRT {what}", lines)


def _runtime_config(loaded: Loaded) -> Any:
    """How TensorRT for RTX is to run inside our CUDA graphs."""
    trt: Any = loaded.module
    config = loaded.engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    # LAZY would freeze its fallback kernels into a graph captured before the special ones are ready.
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the graph is ours
    return config
