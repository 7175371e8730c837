"""Choose a plan, deserialise it and check it; the cache of kernels compiled at run time."""

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
from centernet_trt.runtime.trt.flavours import RUNTIME_FLAVOURS, RuntimeFlavour, import_flavour

_log = logging.getLogger(__name__)


class KernelCache:
    """One plan's runtime cache on one GPU. A folder that cannot be used costs time, not the run."""

    def __init__(self, config: Any, plan: PlanRecord, device: DeviceInfo) -> None:
        """Make the cache, fill it from its file where there is one, and give it to a runtime configuration.

        Args:
            config: TensorRT's IRuntimeConfig.
            plan: named by its hash, and by the version of TensorRT.
            device: named by its kind; TensorRT itself refuses a cache of another GPU or driver.
        """
        key = f"{plan.sha256} {plan.version} {device.name} {device.capability} {device.driver_version}"
        self.path = cache_dir() / "rtx" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.cache"
        self._cache: Any = config.create_runtime_cache()
        content = self._read()
        if content and not self._cache.deserialize(content):
            _log.info("TensorRT does not take the kernels cached in %s, and compiles them again", self.path)
            content = b""
        self._kept = hashlib.sha256(content).digest()
        if not config.set_runtime_cache(self._cache):
            _log.warning("TensorRT takes no cache for compiled kernels: every start compiles them again")

    def save(self) -> None:
        """Write what has been compiled since, whole or not at all."""
        content = bytes(memoryview(self._cache.serialize()))
        digest = hashlib.sha256(content).digest()
        if digest == self._kept:
            return
        try:
            atomic_write(self.path, content, parents=True)
            self._kept = digest
        except OSError as error:
            _log.warning("the kernels that TensorRT compiled could not be kept in %s: %s", self.path, error)

    def close(self) -> None:
        """Save, and drop TensorRT's object."""
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
# Targets that serve GPUs from this compute capability on; the others serve the one that they name.
_OLDEST_PORTABLE = (8, 0)


@dataclass(frozen=True)
class Loaded:
    """A plan in memory: TensorRT's module, the flavour, the record it was chosen by, and TensorRT's objects."""

    module: ModuleType
    flavour: RuntimeFlavour
    plan: PlanRecord
    runtime: Any
    engine: Any


def choose_plan(bundle: EngineBundle, device: DeviceInfo) -> tuple[PlanRecord, ModuleType]:
    """The plan of a bundle that this GPU and the TensorRT installed here can run, and that TensorRT.

    Raises:
        BundleError: there is none; the message says of each what it was built for and what is here.
    """
    manifest = bundle.manifest
    if not manifest.plans:
        raise BundleError("the bundle has no TensorRT plan", f"build one: {manifest.command}")
    problems = []
    for plan in manifest.plans:
        problem = _why_not_gpu(plan, device)
        if problem is None:
            try:
                module = import_flavour(plan.flavour)
            except BackendError as error:
                problem = f"{error.message} ({error.hint})"
            else:
                problem = _why_not_version(plan, module)
                if problem is None:
                    return plan, module
        problems.append(f"\n  {plan.file}: {problem}")
    raise BundleError(
        "no plan of the bundle can run here:" + "".join(problems),
        f"rebuild the bundle with the TensorRT that is installed here: {manifest.command}",
    )


def _why_not_gpu(plan: PlanRecord, device: DeviceInfo) -> str | None:
    here = f"{device.name} is sm_{device.capability[0]}{device.capability[1]}"
    if plan.target == "portable" and device.capability < _OLDEST_PORTABLE:
        return f"built for sm_80 and later, {here}; build with --target sm_75 for Turing"
    if plan.target.startswith("sm_") and plan.target != f"sm_{device.capability[0]}{device.capability[1]}":
        return f"built for {plan.target}, {here}"
    return None


def _why_not_version(plan: PlanRecord, module: ModuleType) -> str | None:
    flavour, version = RUNTIME_FLAVOURS[plan.flavour], str(module.__version__)
    oldest = ".".join(map(str, flavour.oldest))
    if tuple(int(part) for part in version.split(".")[:2]) < flavour.oldest:
        return f"{flavour.module_name} {version} is installed, {oldest} or newer is needed"
    if version != plan.version:
        return f"built by {flavour.module_name} {plan.version}, {version} is installed here"
    return None


def load_engine(bundle: EngineBundle, device: DeviceInfo) -> Loaded:
    """Deserialise the plan that fits; the device's context is current.

    Raises:
        BundleError: no plan fits, or the plan's tensors or optimisation profiles are not those of the manifest.
        BackendError: TensorRT does not start or refuses the plan; its own lines are in the message.
    """
    plan, module = choose_plan(bundle, device)
    trt: Any = module
    content = (bundle.path / plan.file).read_bytes()
    with trt_log.capture() as lines:
        logger = trt_log.logger_for(module)
        if hasattr(trt, "init_libnvinfer_plugins"):
            trt.init_libnvinfer_plugins(logger, "")  # full TensorRT keeps DeformConv there
        try:
            runtime = trt.Runtime(logger)
            engine = runtime.deserialize_cuda_engine(content)
        except (TypeError, RuntimeError) as error:  # a constructor that gave a null pointer
            raise failure(module, f"TensorRT does not start: {error}", lines) from error
        problem: CenterNetError | None
        if engine is None:
            problem = failure(
                module, f"TensorRT refuses the plan {plan.file}{_validity(runtime, content)}", lines
            )
        else:
            problem = _wrong_tensors(trt, engine, bundle.manifest) or _wrong_profiles(engine, bundle.manifest)
    if problem is not None:
        del engine, runtime  # the traceback would keep them, beyond their context
        raise problem
    return Loaded(module, RUNTIME_FLAVOURS[plan.flavour], plan, runtime, engine)


def failure(module: ModuleType, what: str, lines: list[trt_log.LogLine], hint: str = "") -> BackendError:
    """The error with TensorRT's own lines of the failing call."""
    own = "".join(f"\n  {line}" for line in trt_log.important(lines))
    said = f"{module.__name__} {module.__version__} says:{own or ' nothing'}"
    return BackendError(
        f"{what}; {said}",
        hint or "see what it names above; backend='onnxruntime' runs the same graph on the host",
    )


def _validity(runtime: Any, content: bytes) -> str:
    """What RTX says of a plan that does not load: its opinion and the reasons."""
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    try:
        validity, reasons = runtime.get_engine_validity(content)
    except Exception as error:  # noqa: BLE001 - it is asked for a better message only
        return f" (and does not say why: {error})"
    return f" ({validity}, {reasons})"


def _wrong_tensors(trt: Any, engine: Any, manifest: Manifest) -> BundleError | None:
    """What is wrong with the engine's tensors by the manifest: names, direction, element types."""
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
        f"the plan's tensors are {_listed(found)}; the manifest says {_listed(wanted)}",
        f"rebuild the bundle: {manifest.command}",
    )


def _listed(tensors: Mapping[str, tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({direction}, {dtype})" for name, (direction, dtype) in sorted(tensors.items()))


def _wrong_profiles(engine: Any, manifest: Manifest) -> BundleError | None:
    """What is wrong with the engine's optimisation profiles by the manifest: their number, order and shapes."""
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
        f"the plan's optimisation profiles (smallest, tuned and largest {name}) are {found}; the manifest says {wanted}",
        f"rebuild the bundle: {manifest.command}",
    )
