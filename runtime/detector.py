"""Detector: a bundle loaded and ready; images in, detections out."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, Self, overload

import numpy as np

from centernet_trt.errors import BackendError, CenterNetError, InputError
from centernet_trt.runtime.bundle import EngineBundle
from centernet_trt.runtime.decode import check_heads, decode
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.executor import Executor, allocate_heads
from centernet_trt.runtime.geometry import Placement, place
from centernet_trt.runtime.images import BgrImage, ImageSource, as_bgr
from centernet_trt.runtime.onnxruntime_executor import Mode, OnnxRuntimeExecutor
from centernet_trt.runtime.preprocess import preprocess
from centernet_trt.runtime.spec import MAX_TOP_K

Backend = Literal["auto", "tensorrt", "onnxruntime"]


class BatchError(InputError):
    """Some images of a batch failed; `results` has the detections of the others, and the errors in their places."""

    def __init__(self, results: "list[Detections | CenterNetError]") -> None:
        self.results = results
        failed = {row: result for row, result in enumerate(results) if isinstance(result, CenterNetError)}
        lines = [f"  image {row}: {error.message}" for row, error in failed.items()]
        super().__init__(
            f"{len(failed)} of {len(results)} images failed:\n" + "\n".join(lines),
            "pass errors='return' to get the errors in the list, beside the other images' detections",
        )

    def __reduce__(self) -> tuple[type["BatchError"], tuple[object, ...]]:  # type: ignore[override]
        return type(self), (self.results,)


class Detector:
    """Finds objects in images with one bundle. A context manager; `detect` may be called from many threads.

    `note` says what must be known about how the network is run; it is empty for TensorRT on a GPU.
    """

    def __init__(self, bundle: EngineBundle, executor: Executor) -> None:
        """Use `Detector.load`; this takes the parts that it makes."""
        self.bundle = bundle
        self._executor: Executor | None = executor
        self.note = executor.note

    @classmethod
    def load(
        cls,
        bundle: str | Path | EngineBundle,
        *,
        backend: Backend = "auto",
        mode: Mode = "fast",
        threads: int | None = None,
    ) -> Self:
        """Load a bundle.

        Args:
            bundle: its folder, or one already read.
            backend: `onnxruntime` runs the network on the host. `auto` takes the best that this version can run.
            mode: of ONNX Runtime: `fast`, or `faithful` to the types of the graph.
            threads: of ONNX Runtime; None for its own choice.

        Raises:
            BundleError: no bundle, or a damaged one.
            BackendError: the backend is not to be had here.
        """
        loaded = bundle if isinstance(bundle, EngineBundle) else EngineBundle.load(bundle)
        if backend == "tensorrt":
            raise BackendError(
                "this version builds TensorRT plans but does not run them yet",
                "use backend='onnxruntime' (or 'auto') to run the same graph on the host",
            )
        if backend not in ("auto", "onnxruntime"):
            raise BackendError(
                f"there is no backend {backend!r}", "backends are: auto, onnxruntime, tensorrt"
            )
        return cls(loaded, OnnxRuntimeExecutor(loaded.model_path, loaded.manifest, mode, threads))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the network; a later call of `detect` is an error. May be called twice."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.close()

    def detect(
        self,
        image: ImageSource,
        threshold: float | None = None,
        classes: Sequence[int | str] | None = None,
        top_k: int | None = None,
    ) -> Detections:
        """What is in one image.

        Args:
            image: a path, an array as cv2.imread gives it, or a PIL image (see `images.as_bgr`).
            threshold: lowest score wanted, 0..1; None for the spec's.
            classes: only these, by index or name; chosen from the `top_k` best of all classes.
            top_k: at most so many detections; None for the spec's.

        Raises:
            InputError: the image or an argument cannot be used.
            BackendError: the network failed.
        """
        (result,) = self.detect_batch([image], threshold, classes, top_k, errors="return")
        if isinstance(result, CenterNetError):
            raise result
        return result

    @overload
    def detect_batch(
        self,
        images: Sequence[ImageSource],
        threshold: float | None = None,
        classes: Sequence[int | str] | None = None,
        top_k: int | None = None,
        *,
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
        errors: Literal["return"],
    ) -> list[Detections | CenterNetError]: ...

    def detect_batch(
        self,
        images: Sequence[ImageSource],
        threshold: float | None = None,
        classes: Sequence[int | str] | None = None,
        top_k: int | None = None,
        *,
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
        self._check_arguments(threshold, top_k)
        results: dict[int, Detections | CenterNetError] = {}
        ready: dict[tuple[int, int], dict[int, tuple[BgrImage, Placement]]] = {}
        for row, source in enumerate(images):
            try:
                image = as_bgr(source)
                placement = self._place(image)
            except CenterNetError as error:
                results[row] = error
                continue
            ready.setdefault((placement.height, placement.width), {})[row] = (image, placement)
        largest = self.bundle.manifest.profile.batch.max
        for group in ready.values():
            rows = iter(group.items())
            while chunk := dict(islice(rows, largest)):
                found = self._run(list(chunk.values()), threshold, top_k)
                if classes is not None:
                    found = [detections.of_classes(classes) for detections in found]
                results.update(zip(chunk, found, strict=True))
        ordered = [results[row] for row in range(len(images))]
        good = [result for result in ordered if isinstance(result, Detections)]
        if errors == "return" or len(good) == len(ordered):
            return ordered
        raise BatchError(ordered)

    def _check_arguments(self, threshold: float | None, top_k: int | None) -> None:
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold is {threshold}, a score from 0 to 1 was expected")
        if top_k is not None and not 1 <= top_k <= MAX_TOP_K:
            raise InputError(f"top_k is {top_k}, 1 to {MAX_TOP_K} was expected")

    def _place(self, image: BgrImage) -> Placement:
        manifest = self.bundle.manifest
        placement = place(manifest.spec.input, image.shape[1], image.shape[0])
        profile = manifest.profile
        if placement.height not in profile.height or placement.width not in profile.width:
            raise InputError(
                f"an image of {image.shape[1]}x{image.shape[0]} pixels needs a network input of "
                f"{placement.width}x{placement.height}; the engine was built for widths {profile.width} and "
                f"heights {profile.height}",
                "scale the image down, or rebuild the bundle with wider --width and --height",
            )
        return placement

    def _run(
        self, batch: list[tuple[BgrImage, Placement]], threshold: float | None, top_k: int | None
    ) -> list[Detections]:
        executor, manifest = self._executor, self.bundle.manifest
        if executor is None:
            raise BackendError("the detector is closed", "load the bundle again: Detector.load(...)")
        images, placements = [image for image, _ in batch], [placement for _, placement in batch]
        tensor = preprocess(images, placements, manifest.spec.input, np.dtype(manifest.input.dtype))
        heads = allocate_heads(manifest, *(len(batch), *tensor.shape[2:]))
        check_heads({name: head.shape for name, head in heads.items()}, manifest.spec)
        executor.run({manifest.input.name: tensor}, heads)
        return decode(heads, manifest.spec, placements, threshold, top_k)
