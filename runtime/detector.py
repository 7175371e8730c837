"""Detector: a bundle loaded and ready; images in, detections out."""

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
    """Finds objects in images with one bundle. A context manager; everything may be called from many threads.

    `note` says what must be known about how the network is run; it is empty for TensorRT on a GPU.
    """

    def __init__(
        self, bundle: EngineBundle, backend: Backend, batching: Batching | None = None, workers: int = 1
    ) -> None:
        """Use `Detector.load`; this takes the parts that it makes."""
        self.bundle = bundle
        self._backend: Backend | None = backend
        self.note = backend.note
        self._process = os.getpid()
        self._spec = bundle.manifest.spec
        self._intake = InputPreparer(bundle.manifest)
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
        """Load a bundle.

        Args:
            bundle: its folder, or one already read.
            backend: `tensorrt` runs a plan on a GPU, `onnxruntime` the same graph on the host. `auto` takes TensorRT
                where there is a GPU, the extra `gpu` is installed, and the bundle has a plan for this GPU and the
                installed TensorRT; the reason against it is logged.
            mode: of ONNX Runtime: `fast`, or `faithful` to the types of the graph.
            threads: of ONNX Runtime; None for its own choice.
            batching: how `submit` gathers images into batches; None for the defaults of `Batching`.
            device: the GPU, by number or UUID.
            streams: batches under way at once on the GPU; each takes memory of its own.
            max_batch: images in a batch; None for the most that the bundle was built for.
            cuda_graph: record each shape's work as a CUDA graph; False launches it piece by piece.
            max_graphs: shapes kept by each stream.
            max_pixels: of the largest image that goes from the host to the GPU.
            spin: wait for the GPU without sleeping: faster by some microseconds, at the price of a busy core.
            binding: Python package for the CUDA driver; `auto` takes PyCUDA where it is installed.

        Raises:
            BundleError: no bundle, or a damaged one.
            BackendError: the backend is not to be had here.
            CudaError: the GPU fails, or its memory does not suffice.
            InputError: an argument cannot be used.
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
        """Free the network; a later call of `detect` or `submit` is an error. May be called twice.

        Args:
            drain: first finish the images that were submitted; False fails those still in the queue with a
                BackendError. Leaving a `with` block by an exception does not drain.

        In a fork of the process that loaded it nothing is freed: it all belongs to the parent.
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
        """What is in one image.

        Args:
            image: a path, an array as cv2.imread gives it, a PIL image (see `images.as_bgr`); or, for TensorRT, a
                uint8 array in GPU memory, (H, W), (H, W, 3) or (H, W, 4), blue first, by DLPack or
                `__cuda_array_interface__`. Leave it as it is until the call returns.
            threshold: lowest score wanted, 0..1; None for the spec's.
            classes: only these, by index or name; chosen from the `top_k` best of all classes.
            top_k: at most so many detections; None for the spec's.
            tta: test-time augmentation: "flip", "multiscale", "flip+multiscale" or a `TestTimeAugmentation`. The heads
                are averaged and decoded on the host, whichever backend runs the network.

        Raises:
            InputError: the image or an argument cannot be used.
            BackendError: the network failed.
        """
        options = validate_options(self._spec, threshold, classes, top_k, tta)
        check_owner(self._process, "the detector")
        if options.tta is not None:
            return self._augmented(host_image(image), options)
        (found,) = self._run([InferenceRequest(*self._prepare(image), threshold, top_k)])
        return options.chosen(found)

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
        """What is in each of many images, of any sizes; the other arguments are those of `detect`.

        Images whose network input has the same size run together, at most the bundle's largest batch at a time.

        An image that cannot be used fails alone: with `errors="return"` its error stands in its place; with
        "raise" the others are still done and are in the `results` of the BatchError.

        Raises:
            BatchError: an image could not be used.
            InputError: an argument cannot be used.
            BackendError: the network failed.
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
        """Queue an image; images that are submitted at about the same time run as one batch.

        The answer is the one of `detect` with the same arguments. The future can be awaited, and cancelled until its
        batch starts. An image that cannot be used fails its own future, with an InputError. An array is not copied:
        leave it as it is until the future is done. A path is read here, in the caller's thread.

        Args:
            image: as for `detect`.
            timeout: seconds to wait for room in the queue; 0 not at all, None as long as it takes.
            threshold, classes, top_k: as for `detect`, and of this image alone.
            tta: test-time augmentation, as for `detect`; the image is then a batch by itself.

        Raises:
            QueueFullError: no room within the timeout.
            InputError: an argument cannot be used.
            BackendError: the detector is closed, or was loaded before a fork.
        """
        options = validate_options(self._spec, threshold, classes, top_k, tta)
        return self._submissions.submit(image, options, timeout)

    def warmup(
        self, sizes: Sequence[tuple[int, int]] | None = None, batches: Sequence[int] | None = None
    ) -> None:
        """Do now what the first image of a size would wait for: kernels, execution contexts, CUDA graphs.

        Args:
            sizes: (width, height) in pixels of the images to come; None for the size that each profile is tuned for.
            batches: how many images at once; None for 1 and the largest batch.

        Raises:
            InputError: a size or a batch that the bundle was not built for.
            BackendError: the network failed.
        """
        check_owner(self._process, "the detector")
        backend = self._open_backend
        backend.warm(self._intake.blank_batches(sizes, batches, backend.max_batch))

    def pinned_image(self, height: int, width: int) -> BgrImage:
        """A new image (height, width, 3) uint8 of any content, which goes to the GPU without a copy on the host.

        Fill it (blue first) and hand it to `detect`, `detect_batch` or `submit`, as often as you like; make it once, for
        locking memory is slow. Whole rows of it (`image[:100]`) do as well; so do arrays that PyTorch or CuPy page-locked.
        On the host backend it is an ordinary array, and so it is when the detector is closed.

        Raises:
            InputError: no such size.
            CudaError: the driver locks no more memory.
            BackendError: the detector is closed, or was loaded before a fork.
        """
        check_owner(self._process, "the detector")
        return self._open_backend.pinned_image(height, width)

    @property
    def memory(self) -> MemoryUse:
        """What is allocated on the GPU and in page-locked memory, and for what; only `pinned_image` adds to it."""
        return self._open_backend.memory

    @property
    def stats(self) -> RequestStatistics:
        """Queue depth, batch sizes, counts and latencies of what was submitted."""
        return self._submissions.statistics

    def _augmented(self, image: BgrImage, options: DetectOptions) -> Detections:
        assert options.tta is not None
        backend, manifest = self._open_backend, self.bundle.manifest
        asked = (options.tta, options.threshold, options.top_k, backend.max_batch)
        return options.chosen(detect_augmented(image, manifest, backend.heads, *asked))

    def _prepare(self, source: ImageSource) -> Placed:
        return self._intake.prepare(source, self._open_backend.check_image)

    @property
    def _open_backend(self) -> Backend:
        if self._backend is None:
            raise BackendError("the detector is closed", "load the bundle again: Detector.load(...)")
        return self._backend

    def _run(self, batch: list[InferenceRequest]) -> list[Detections]:
        (found,) = self._open_backend.run([batch])
        return found
