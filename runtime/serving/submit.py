"""Submissions: pass the images submitted to a Detector to its batcher."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from centernet_trt.errors import CenterNetError, InputError
from centernet_trt.runtime.backend import InferenceRequest
from centernet_trt.runtime.detections import Detections
from centernet_trt.runtime.images import BgrImage, ImageSource
from centernet_trt.runtime.inputs import DetectOptions, Placed, host_image
from centernet_trt.runtime.serving.batcher import DynamicBatcher
from centernet_trt.runtime.serving.types import Batching, RequestFuture, RequestStatistics


@dataclass(frozen=True, slots=True)
class _Job:
    """A submitted image.

    Attributes:
        image: placed in the network input; or on the host, to be augmented.
        options: of its call.
    """

    image: InferenceRequest | BgrImage
    options: DetectOptions


class Submissions:
    """Batches the submitted images of one detector. Images of one network size share batches, whatever their options.

    An image with test-time augmentation is a batch by itself, since each of its runs of the network already is one.
    """

    def __init__(
        self,
        place: Callable[[ImageSource], Placed],
        run: Callable[[list[InferenceRequest]], list[Detections]],
        augment: Callable[[BgrImage, DetectOptions], Detections],
        max_batch: int,
        settings: Batching | None = None,
        workers: int = 1,
    ) -> None:
        """Set up the batcher; threads start with the first image.

        Args:
            place: reads an image and places it in the network input.
            run: detects in images that share a network size; called from several threads.
            augment: detects in one image with the options' augmentation; likewise.
            max_batch: maximum number of images in a batch.
            settings: None for the defaults of `Batching`.
            workers: number of threads, if the settings do not set it.
        """
        self._place, self._run, self._augment = place, run, augment
        settings = settings or Batching()
        self._batcher: DynamicBatcher[_Job, Detections] = DynamicBatcher(
            self._run_batch, max_batch, replace(settings, workers=settings.workers or workers)
        )

    def submit(
        self, image: ImageSource, options: DetectOptions, timeout: float | None = None
    ) -> RequestFuture[Detections]:
        """Queue an image; see `Detector.submit`."""
        self._batcher.check_open()
        try:
            job, group = self._job(image, options)
        except InputError as error:
            failed: RequestFuture[Detections] = RequestFuture()
            failed.set_exception(error)
            return failed
        return self._batcher.submit(job, group, timeout)

    def _job(self, image: ImageSource, options: DetectOptions) -> tuple[_Job, Hashable]:
        """Make the job, and the group that it may share a batch with."""
        if options.tta is not None:
            return _Job(host_image(image), options), object()
        loaded, placement = self._place(image)
        request = InferenceRequest(loaded, placement, options.threshold, options.top_k)
        return _Job(request, options), (placement.height, placement.width)

    def close(self, drain: bool = True) -> None:
        """End the threads; see `DynamicBatcher.close`."""
        self._batcher.close(drain)

    @property
    def statistics(self) -> RequestStatistics:
        """Counts, batch sizes and latencies so far."""
        return self._batcher.statistics

    def _run_batch(self, jobs: list[_Job]) -> list[Detections | Exception]:
        requests = [job.image for job in jobs if isinstance(job.image, InferenceRequest)]
        if not requests:
            return [self._augmented(job) for job in jobs]
        found = self._run(requests)
        return [job.options.filter_classes(detections) for detections, job in zip(found, jobs, strict=True)]

    def _augmented(self, job: _Job) -> Detections | Exception:
        assert not isinstance(job.image, InferenceRequest)
        try:
            return self._augment(job.image, job.options)
        except CenterNetError as error:  # of this image, such as a scale that the bundle was not built for
            return error
