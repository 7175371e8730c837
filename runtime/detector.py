"""Detector: load a bundle, then detect objects in images with it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, overload

from centernet_trt.errors import BackendError, CenterNetError
from centernet_trt.runtime.backend import Backend, GpuOptions, InferenceRequest, MemoryUse
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.cuda.binding import BindingName
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.fork_guard import check_owner, guard_forks
from centernet_trt.runtime.host.backend import HostBackend
from centernet_trt.runtime.host.onnxruntime import Mode
from centernet_trt.runtime.images import BgrImage, ImageSource
from centernet_trt.runtime.inputs import (
    BatchError,
    DetectOptions,
    InputPreparer,
    Placed,
    host_image,
    map_collecting_errors,
    run_in_batches,
    validate_options,
)
from centernet_trt.runtime.select import BackendName, open_backend
from centernet_trt.runtime.serving.submit import Submissions
from centernet_trt.runtime.serving.types import Batching, RequestFuture, RequestStatistics
from centernet_trt.runtime.tta.augment import Augmentation, detect_augmented


class Detector:
    """Detects objects in images with one engine bundle.

    A context manager; all methods may be called from many threads. It cannot be used in a forked child process:
    load it there instead.

    Example::

        with Detector.load("engines/coco") as detector:
            detections = detector.detect("street.jpg", threshold=0.4)

    Attributes:
        bundle: the bundle that was loaded.
        note: how the network runs, where that is not TensorRT on a GPU; empty otherwise.
    """

    def __init__(
        self, bundle: EngineBundle, backend: Backend, batching: Batching | None = None, workers: int = 1
    ) -> None:
        """Assemble a detector from its parts; most callers want `Detector.load`.

        Args:
            bundle: already read and checked.
            backend: runs the network of that bundle; the detector closes it.
            batching: how `submit` gathers images into batches; None for the defaults of `Batching`.
            workers: threads that run batches, where `batching` does not set a number.
        """
        self.bundle = bundle
        self._backend: Backend | None = backend
        self.note = backend.note
        self._process = os.getpid()
        self._spec = bundle.manifest.spec
        self._inputs = InputPreparer(bundle.manifest)
        guard_forks(backend)
        self._submissions = Submissions(
            self._prepare, self._run, self._augmented, backend.max_batch, batching, workers
        )

    @classmethod
    def load(
        cls,
        bundle: str | Path | EngineBundle,
        *,
        backend: BackendName = "auto",
        mode: Mode = "fast",
        threads: int | None = None,
        batching: Batching | None = None,
        device: int | str = 0,
        streams: int = 2,
        max_batch: int | None = None,
        cuda_graph: bool = True,
        max_graphs: int = 16,
        max_pixels: int = 4096 * 3072,
        spin: bool = True,
        binding: BindingName = "auto",
    ) -> Self:
        """Load a bundle and prepare its backend.

        Args:
            bundle: folder of the bundle, or a bundle already read.
            backend: `tensorrt` runs a plan on a GPU, `onnxruntime` the same graph on the CPU. `auto` takes TensorRT
                if there is a GPU, the extra `gpu` is installed, and the bundle has a plan for this GPU and the
                installed TensorRT; otherwise it logs the reason and takes ONNX Runtime.
            mode: how ONNX Runtime computes: `fast` optimises, `faithful` rounds every result to the graph's types.
            threads: threads of ONNX Runtime; None for its own choice.
            batching: how `submit` gathers images into batches; None for the defaults of `Batching`.
            device: the GPU, by number or UUID.
            streams: batches in flight at once on the GPU; each has memory of its own.
            max_batch: maximum number of images in a batch; None for the largest that the bundle was built for.
            cuda_graph: capture the work of each shape as a CUDA graph; False launches it step by step.
            max_graphs: CUDA graphs kept per stream; the least recently used is dropped.
            max_pixels: width * height of the largest image uploaded from the host.
            spin: busy-wait for the GPU: some microseconds faster, but it occupies a core.
            binding: Python package for the CUDA driver; `auto` takes PyCUDA if it is installed.

        Returns:
            The detector; close it, or use it in a `with` block.

        Raises:
            BundleError: there is no bundle, or it is damaged.
            BackendError: the backend is not available here.
            CudaError: the GPU fails or runs out of memory.
            InputError: an argument is invalid.
        """
        loaded = bundle if isinstance(bundle, EngineBundle) else EngineBundle.load(bundle)
        options = GpuOptions(device, streams, max_batch, cuda_graph, max_graphs, max_pixels, spin, binding)
        opened = open_backend(loaded, backend, mode, threads, options)
        return cls(loaded, opened, batching, 1 if isinstance(opened, HostBackend) else streams)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(drain=kind is None)

    def close(self, drain: bool = True) -> None:
        """Free the network; later calls of `detect` or `submit` raise BackendError. May be called twice.

        In a forked child of the process that loaded it nothing is freed: the resources belong to the parent.

        Args:
            drain: first finish the images that were submitted; False fails those still in the queue with a
                BackendError. Leaving a `with` block by an exception does not drain.
        """
        if os.getpid() != self._process:
            return
        self._submissions.close(drain)
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def detect(
        self,
        image: ImageSource,
        threshold: float | None = None,
        classes: Sequence[int | str] | None = None,
        top_k: int | None = None,
        *,
        tta: Augmentation | None = None,
    ) -> Detections:
        """Detect the objects in one image.

        Args:
            image: a path, an array as cv2.imread returns it, or a PIL image (see `images.as_bgr`); with TensorRT also a
                uint8 array in GPU memory, (H, W), (H, W, 3) or (H, W, 4), blue first, given by DLPack or
                `__cuda_array_interface__`. Do not change it until the call returns.
            threshold: lowest score to return, 0..1; None for the spec's.
            classes: only these classes, by index or name, filtered from the `top_k` best of all classes; None for all.
            top_k: maximum number of detections per image, 1..1024; None for the spec's.
            tta: test-time augmentation: "flip", "multiscale", "flip+multiscale" or a `TestTimeAugmentation`. The heads
                are averaged and decoded on the host, whichever backend runs the network.

        Returns:
            The detections, best first; boxes in pixels of the image.

        Raises:
            InputError: the image or an argument is invalid.
            BackendError: the network failed, or the detector is closed or was loaded before a fork.
            CudaError: the GPU failed.
        """
        options = validate_options(self._spec, threshold, classes, top_k, tta)
        check_owner(self._process, "the detector")
        if options.tta is not None:
            return self._augmented(host_image(image), options)
        (found,) = self._run([InferenceRequest(*self._prepare(image), threshold, top_k)])
        return options.filter_classes(found)

    @overload
    def detect_batch(
        self,
        images: Sequence[ImageSource],
        threshold: float | None = None,
        classes: Sequence[int | str] | None = None,
        top_k: int | None = None,
        *,
        tta: Augmentation | None = None,
        errors: Literal["raise"] = "raise",
    ) -> list[Detections]: ...

    @overload
    def detect_batch(
        self,
        images: Sequence[ImageSource],
        threshold: float | None = None,
        classes: Sequence[int | str] | None = None,
        top_k: int | None = None,
        *,
        tta: Augmentation | None = None,
        errors: Literal["return"],
    ) -> list[Detections | CenterNetError]: ...

    def detect_batch(
        self,
        images: Sequence[ImageSource],
        threshold: float | None = None,
        classes: Sequence[int | str] | None = None,
        top_k: int | None = None,
        *,
        tta: Augmentation | None = None,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[Detections] | list[Detections | CenterNetError]:
        """Detect the objects in several images of any sizes.

        Images whose network inputs have the same size run together, at most `max_batch` at a time. An invalid image
        fails alone.

        Args:
            images: each as for `detect`; empty gives an empty list.
            threshold: lowest score to return, 0..1; None for the spec's.
            classes: only these classes, by index or name, filtered from the `top_k` best of all classes; None for all.
            top_k: maximum number of detections per image, 1..1024; None for the spec's.
            tta: test-time augmentation, as for `detect`; the images then run one by one.
            errors: what an invalid image does. "raise" processes the other images, then raises a BatchError whose
                `results` has their detections; "return" puts the image's error in its place in the list.

        Returns:
            One Detections per image, in the order of `images`; with `errors="return"` an error for each invalid image.

        Raises:
            BatchError: an image is invalid, and `errors` is "raise".
            InputError: an argument is invalid.
            BackendError: the network failed, or the detector is closed or was loaded before a fork.
            CudaError: the GPU failed.
        """
        options = validate_options(self._spec, threshold, classes, top_k, tta)
        check_owner(self._process, "the detector")
        if options.tta is not None:
            found, failed = map_collecting_errors(
                images, lambda image: self._augmented(host_image(image), options)
            )
        else:
            ready, failed = map_collecting_errors(images, self._prepare)
            found = run_in_batches(ready, options, self._open_backend)
        results: list[Detections | CenterNetError]
        results = [found[row] if row in found else failed[row] for row in range(len(images))]
        if failed and errors == "raise":
            raise BatchError(results)
        return results

    def submit(
        self,
        image: ImageSource,
        timeout: float | None = None,
        threshold: float | None = None,
        classes: Sequence[int | str] | None = None,
        top_k: int | None = None,
        *,
        tta: Augmentation | None = None,
    ) -> RequestFuture[Detections]:
        """Queue an image; images submitted at about the same time run as one batch.

        A path is read in the caller's thread. An array is not copied: do not change it until the future is done.

        Args:
            image: as for `detect`.
            timeout: seconds to wait for space in the queue: 0 does not wait, None waits without limit.
            threshold: lowest score to return, 0..1; None for the spec's.
            classes: only these classes, by index or name, filtered from the `top_k` best of all classes; None for all.
            top_k: maximum number of detections per image, 1..1024; None for the spec's.
            tta: test-time augmentation, as for `detect`; the image is then a batch by itself.

        Returns:
            A future with what `detect` returns for the same arguments. It can be awaited, and cancelled until its batch
            starts. An invalid image fails its own future with an InputError.

        Raises:
            QueueFullError: no space within the timeout.
            InputError: an argument is invalid.
            BackendError: the detector is closed, or was loaded before a fork.
        """
        options = validate_options(self._spec, threshold, classes, top_k, tta)
        return self._submissions.submit(image, options, timeout)

    def warmup(
        self, sizes: Sequence[tuple[int, int]] | None = None, batches: Sequence[int] | None = None
    ) -> None:
        """Prepare kernels, execution contexts and CUDA graphs, so that the first image of a size does not wait for them.

        Args:
            sizes: (width, height) in pixels of the expected images; None for the size that each profile is tuned for.
            batches: batch sizes to prepare; None for 1 and the largest.

        Raises:
            InputError: the bundle was not built for a size or batch.
            BackendError: the network failed, or the detector is closed or was loaded before a fork.
            CudaError: the GPU failed.
        """
        check_owner(self._process, "the detector")
        backend = self._open_backend
        backend.warm(self._inputs.blank_batches(sizes, batches, backend.max_batch))

    def pinned_image(self, height: int, width: int) -> BgrImage:
        """Allocate an image in pinned memory, which is uploaded to the GPU without a copy on the host.

        Fill it (blue first) and pass it to `detect`, `detect_batch` or `submit`, any number of times; allocate it once,
        since pinning is slow. Whole rows of it (`image[:100]`) and arrays pinned by PyTorch or CuPy work too. On the CPU
        backend it is an ordinary array, and becomes one when the detector is closed.

        Args:
            height: rows, at least 1.
            width: columns, at least 1.

        Returns:
            (height, width, 3) uint8, not initialised.

        Raises:
            InputError: a side is less than 1.
            CudaError: the driver cannot pin more memory.
            BackendError: the detector is closed, or was loaded before a fork.
        """
        check_owner(self._process, "the detector")
        return self._open_backend.pinned_image(height, width)

    @property
    def memory(self) -> MemoryUse:
        """Bytes allocated on the GPU and in pinned memory, by purpose; after loading only `pinned_image` adds to it.

        Raises:
            BackendError: the detector is closed.
        """
        return self._open_backend.memory

    @property
    def stats(self) -> RequestStatistics:
        """Queue depth, batch sizes, counts and latencies (seconds) of the submitted requests.

        Raises:
            BackendError: the detector was loaded before a fork.
        """
        return self._submissions.statistics

    def _augmented(self, image: BgrImage, options: DetectOptions) -> Detections:
        assert options.tta is not None
        backend, manifest = self._open_backend, self.bundle.manifest
        arguments = (options.tta, options.threshold, options.top_k, backend.max_batch)
        return options.filter_classes(detect_augmented(image, manifest, backend.heads, *arguments))

    def _prepare(self, source: ImageSource) -> Placed:
        return self._inputs.prepare(source, self._open_backend.check_image)

    @property
    def _open_backend(self) -> Backend:
        if self._backend is None:
            raise BackendError("the detector is closed", "load the bundle again: Detector.load(...)")
        return self._backend

    def _run(self, batch: list[InferenceRequest]) -> list[Detections]:
        (found,) = self._open_backend.run([batch])
        return found
