"""load_engine: choose, deserialise and check a plan. KernelCache: kernels that TensorRT for RTX compiles."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from centernet_trt.cache import atomic_write, cache_dir
from centernet_trt.errors import BackendError, BundleError, CenterNetError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.binding import DeviceInfo
from centernet_trt.runtime.manifest import Manifest, PlanRecord
from centernet_trt.runtime.trt import logging as trt_log
from centernet_trt.runtime.trt.flavours import Flavour, load_flavour

_log = logging.getLogger(__name__)


class KernelCache:
    """The kernels compiled at run time for one plan on one GPU, kept in a file; an unusable folder costs time only."""

    def __init__(self, config: Any, plan: PlanRecord, device: DeviceInfo) -> None:
        """Create the cache, fill it from its file if there is one, and attach it to a runtime configuration.

        Args:
            config: TensorRT's IRuntimeConfig.
            plan: whose hash and TensorRT version are part of the file's name.
            device: whose model and driver version are part of it; TensorRT itself checks both, too.
        """
        key = f"{plan.sha256} {plan.version} {device.name} {device.capability} {device.driver_version}"
        self.path = cache_dir() / "rtx" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.cache"
        self._cache: Any = config.create_runtime_cache()
        content = self._read()
        if content and not self._cache.deserialize(content):
            _log.info("TensorRT rejects the cached kernels in %s and compiles them again", self.path)
            content = b""
        self._saved = hashlib.sha256(content).digest()
        if not config.set_runtime_cache(self._cache):
            _log.warning("TensorRT accepts no cache for compiled kernels: every start compiles them again")

    def save(self) -> None:
        """Write the file if kernels have been compiled since the last write."""
        content = bytes(memoryview(self._cache.serialize()))
        digest = hashlib.sha256(content).digest()
        if digest == self._saved:
            return
        try:
            atomic_write(self.path, content, parents=True)
            self._saved = digest
        except OSError as error:
            _log.warning("the kernels that TensorRT compiled could not be saved in %s: %s", self.path, error)

    def close(self) -> None:
        """Save, and free TensorRT's object."""
        if self._cache is not None:
            try:
                self.save()
            finally:
                self._cache = None

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError:
            return b""


_DTYPES = {"float32": "FLOAT", "float16": "HALF"}
# The target `portable` serves GPUs from this compute capability on; the other targets serve the one that they name.
_OLDEST_PORTABLE = (8, 0)


@dataclass(frozen=True)
class LoadedPlan:
    """A deserialised plan.

    Attributes:
        flavour: of TensorRT.
        plan: record of the plan in the manifest.
        runtime: TensorRT's IRuntime, which must outlive the engine.
        engine: TensorRT's ICudaEngine.
    """

    flavour: Flavour
    plan: PlanRecord
    runtime: Any
    engine: Any

    @property
    def module(self) -> ModuleType:
        """The TensorRT package."""
        return self.flavour.module


def choose_plan(bundle: EngineBundle, device: DeviceInfo) -> tuple[PlanRecord, Flavour]:
    """Choose the first plan of a bundle that this GPU and the installed TensorRT can run.

    Returns:
        The plan's record and the flavour of TensorRT that runs it.

    Raises:
        BundleError: no plan fits; the message gives the reason for each.
    """
    manifest = bundle.manifest
    if not manifest.plans:
        raise BundleError("the bundle has no TensorRT plan", f"build one: {manifest.command}")
    problems = []
    for plan in manifest.plans:
        problem = _gpu_mismatch(plan, device)
        if problem is None:
            try:
                flavour = load_flavour(plan.flavour)
            except BackendError as error:
                problem = f"{error.message} ({error.hint})"
            else:
                problem = _version_mismatch(plan, flavour)
                if problem is None:
                    return plan, flavour
        problems.append(f"\n  {plan.file}: {problem}")
    raise BundleError(
        "no plan of the bundle can run here:" + "".join(problems),
        f"rebuild the bundle with the TensorRT that is installed here: {manifest.command}",
    )


def _gpu_mismatch(plan: PlanRecord, device: DeviceInfo) -> str | None:
    here = f"{device.name} is sm_{device.capability[0]}{device.capability[1]}"
    if plan.target == "portable" and device.capability < _OLDEST_PORTABLE:
        return f"built for sm_80 and later, {here}; build with --target sm_75 for Turing"
    if plan.target.startswith("sm_") and plan.target != f"sm_{device.capability[0]}{device.capability[1]}":
        return f"built for {plan.target}, {here}"
    return None


def _version_mismatch(plan: PlanRecord, flavour: Flavour) -> str | None:
    version = flavour.version
    oldest = ".".join(map(str, flavour.oldest))
    if tuple(int(part) for part in version.split(".")[:2]) < flavour.oldest:
        return f"{flavour.module_name} {version} is installed, {oldest} or newer is needed"
    if version != plan.version:
        return f"built by {flavour.module_name} {plan.version}, {version} is installed here"
    return None


def load_engine(bundle: EngineBundle, device: DeviceInfo) -> LoadedPlan:
    """Deserialise the plan that fits this GPU. The device's context must be current.

    Raises:
        BundleError: no plan fits, or the plan's tensors or optimisation profiles differ from the manifest.
        BackendError: TensorRT does not start or refuses the plan; its log lines are in the message.
    """
    plan, flavour = choose_plan(bundle, device)
    module, trt = flavour.module, flavour.trt
    content = (bundle.path / plan.file).read_bytes()
    with trt_log.capture() as lines:
        logger = trt_log.logger_for(module)
        if hasattr(trt, "init_libnvinfer_plugins"):
            trt.init_libnvinfer_plugins(logger, "")  # DeformConv of full TensorRT
        try:
            runtime = trt.Runtime(logger)
            engine = runtime.deserialize_cuda_engine(content)
        except (TypeError, RuntimeError) as error:  # a constructor returned a null pointer
            raise failure(module, f"TensorRT does not start: {error}", lines) from error
        problem: CenterNetError | None
        if engine is None:
            problem = failure(
                module, f"TensorRT refuses the plan {plan.file}{_validity(runtime, content)}", lines
            )
        else:
            problem = _tensor_mismatch(trt, engine, bundle.manifest) or _profile_mismatch(
                engine, bundle.manifest
            )
    if problem is not None:
        del engine, runtime  # the traceback would keep them beyond the life of the CUDA context
        raise problem
    return LoadedPlan(flavour, plan, runtime, engine)


def failure(module: ModuleType, what: str, lines: list[trt_log.LogLine], hint: str = "") -> BackendError:
    """Return an error with the lines that TensorRT logged during the failing call."""
    own = "".join(f"\n  {line}" for line in trt_log.important(lines))
    return BackendError(
        f"{what}; log of {module.__name__} {module.__version__}:{own or ' empty'}",
        hint or "see the log lines above; backend='onnxruntime' runs the same graph on the CPU",
    )


def _validity(runtime: Any, content: bytes) -> str:
    """Return what TensorRT for RTX reports about a plan that does not load: validity and reasons."""
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    try:
        validity, reasons = runtime.get_engine_validity(content)
    except Exception as error:  # noqa: BLE001 - it only improves the message
        return f" (no reason given: {error})"
    return f" ({validity}, {reasons})"


def _tensor_mismatch(trt: Any, engine: Any, manifest: Manifest) -> BundleError | None:
    """Compare names, directions and element types of the engine's tensors with the manifest."""
    found: dict[str, tuple[str, str]] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        direction = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        found[name] = (direction, engine.get_tensor_dtype(name).name)
    wanted = {manifest.input.name: ("input", _DTYPES[manifest.input.dtype])}
    wanted |= {head.name: ("output", _DTYPES[head.dtype]) for head in manifest.heads}
    if found == wanted:
        return None
    return BundleError(
        f"the plan's tensors differ from the manifest: expected {_listed(wanted)}, got {_listed(found)}",
        f"rebuild the bundle: {manifest.command}",
    )


def _listed(tensors: Mapping[str, tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({direction}, {dtype})" for name, (direction, dtype) in sorted(tensors.items()))


def _profile_mismatch(engine: Any, manifest: Manifest) -> BundleError | None:
    """Compare number, order and shapes of the engine's optimisation profiles with the manifest."""
    name, channels = manifest.input.name, manifest.input.channels
    found = [
        [tuple(shape) for shape in engine.get_tensor_profile_shape(name, number)]
        for number in range(engine.num_optimization_profiles)
    ]
    wanted = [
        [
            tuple(getattr(side, which) for side in (profile.batch, profile.height, profile.width))
            for which in ("min", "opt", "max")
        ]
        for profile in manifest.profiles
    ]
    wanted = [[(n, channels, h, w) for n, h, w in shapes] for shapes in wanted]
    if found == wanted:
        return None
    return BundleError(
        f"the plan's optimisation profiles (min, opt and max of {name}) differ from the manifest: expected {wanted}, "
        f"got {found}",
        f"rebuild the bundle: {manifest.command}",
    )
