"""TensorRTEngine: a plan on one GPU. NetworkContext: an execution context bound to an input shape."""

from collections.abc import Mapping
from typing import Any

from centernet_trt.errors import BackendError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.device import Device
from centernet_trt.runtime.cuda.resources import Stream
from centernet_trt.runtime.manifest import Manifest, Shape, head_shapes
from centernet_trt.runtime.profiles import choose_profile
from centernet_trt.runtime.trt import logging as trt_log
from centernet_trt.runtime.trt.engine import KernelCache, LoadedPlan, failure, load_engine


class TensorRTEngine:
    """A bundle's plan on one GPU. `context` binds the network to an input shape and device addresses.

    Attributes:
        manifest: of the bundle.
        device: that the plan was loaded on.
        plan: its record in the manifest.
        workspace_bytes: device memory that a context needs for activations.
    """

    def __init__(self, bundle: EngineBundle, device: Device) -> None:
        """Load the plan that fits this GPU and the installed TensorRT.

        Raises:
            BundleError: no plan fits, or its tensors differ from the manifest.
            BackendError: TensorRT is missing, does not start or refuses the plan.
        """
        self.manifest: Manifest = bundle.manifest
        self.device = device
        self._config: Any = None
        self._kernels: KernelCache | None = None
        with device.current:
            self._loaded: LoadedPlan | None = load_engine(bundle, device.info)
            self.plan = self._loaded.plan
            self.workspace_bytes = int(self._loaded.engine.device_memory_size_v2)
            if self._loaded.flavour.compiles_at_runtime:
                self._config = _runtime_config(self._loaded)
                self._kernels = KernelCache(self._config, self.plan, device.info)

    @property
    def loaded(self) -> LoadedPlan:
        """TensorRT's objects; raises BackendError after `close`."""
        if self._loaded is None:
            raise BackendError("the engine is closed", "load the bundle again")
        return self._loaded

    def output_shapes(self, batch: int, height: int, width: int) -> dict[str, Shape]:
        """Return the shapes (N, C, H, W) of the heads for an input of `batch` images of height x width pixels."""
        return head_shapes(self.manifest, batch, height, width)

    def context(
        self, shape: tuple[int, int, int], addresses: Mapping[str, int], workspace: int, stream: Stream
    ) -> "NetworkContext":
        """Make an execution context for one input shape and fixed addresses.

        Args:
            shape: (batch, height, width) of the input, in images and pixels.
            addresses: device address of every input and output, by tensor name.
            workspace: device address of `workspace_bytes`; contexts that never run concurrently may share it.
            stream: that the network will run on.

        Raises:
            InputError: no optimisation profile covers the shape.
            BackendError: TensorRT refuses the shape or an address.
        """
        choose_profile(self.manifest.profiles, *shape)
        return NetworkContext(self, shape, addresses, workspace, stream)

    def new_context(self) -> Any:
        """Create TensorRT's IExecutionContext, without memory of its own; None if TensorRT fails."""
        loaded = self.loaded
        if self._config is not None:
            return loaded.engine.create_execution_context(runtime_config=self._config)
        strategy: Any = loaded.module.ExecutionContextAllocationStrategy.USER_MANAGED
        return loaded.engine.create_execution_context(strategy=strategy)

    def save_kernels(self) -> None:
        """Save the kernels that TensorRT for RTX has compiled so far; a no-op with full TensorRT."""
        if self._kernels is not None:
            with self.device.current:
                self._kernels.save()

    def close(self) -> None:
        """Free the engine, after its contexts were closed. Idempotent; a no-op in a forked process."""
        if self._loaded is None or self.device.foreign_process:
            return
        with self.device.current:
            try:
                if self._kernels is not None:
                    self._kernels.close()
            finally:
                # The engine must be freed before its runtime.
                self._kernels = self._config = None
                runtime = self._loaded.runtime
                self._loaded = None
                del runtime


class NetworkContext:
    """The network bound to one input shape and to device addresses; close it before its engine."""

    def __init__(
        self,
        executor: TensorRTEngine,
        shape: tuple[int, int, int],
        addresses: Mapping[str, int],
        workspace: int,
        stream: Stream,
    ) -> None:
        """Use `TensorRTEngine.context`."""
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
        # May enqueue copies, so it gets the stream that the network will run on, which is not capturing now.
        if self._context.active_optimization_profile != profile and not (
            self._context.set_optimization_profile_async(profile, stream.number)
        ):
            raise self._failure(f"refuses optimisation profile {profile}", lines)
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
                raise self._failure(
                    f"computes another shape of {name!r} than the manifest: expected {shape}, got {found}",
                    lines,
                )

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Set the device address of every tensor; not while a captured graph of this context is in use."""
        with trt_log.capture() as lines:
            for name, address in addresses.items():
                if not self._context.set_tensor_address(name, address):
                    raise self._failure(f"refuses the address of {name!r}", lines)

    def enqueue(self, stream: Stream) -> None:
        """Enqueue the network.

        Raises:
            BackendError: TensorRT failed; a capture must then be abandoned.
        """
        with self._executor.device.current, trt_log.capture() as lines:
            if not self._context.execute_async_v3(stream.number):
                raise self._failure(f"refuses to run {self._what}", lines)

    def report_layers_to(self, profiler: Any) -> None:
        """Make TensorRT time every layer, serially, from now on; `profiler` is an IProfiler."""
        self._context.profiler = profiler

    def capturable(self, stream: Stream) -> bool:
        """Return whether the network can be captured in a CUDA graph; assumed of full TensorRT, which has no such query."""
        if not hasattr(self._context, "is_stream_capturable"):
            return True
        with self._executor.device.current:
            return bool(self._context.is_stream_capturable(stream.number))

    def close(self) -> None:
        """Free the context. Idempotent; a no-op in a forked process."""
        if self._context is None or self._executor.device.foreign_process:
            return
        with self._executor.device.current:
            self._context = None

    def _failure(self, what: str, lines: list[trt_log.LogLine]) -> BackendError:
        return failure(self._module, f"TensorRT {what}", lines)


def _runtime_config(loaded: LoadedPlan) -> Any:
    """Configure TensorRT for RTX to run inside the backend's CUDA graphs."""
    trt: Any = loaded.module
    config = loaded.engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    # LAZY would capture fallback kernels in graphs made before the specialised kernels are ready.
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the backend makes the graphs
    return config
