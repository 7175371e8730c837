"""The errors of the product.

Each says what was found and what was expected (``message``) and what to do about it (``hint``).
"""


class CenterNetError(Exception):
    """Base of every error that the product raises on purpose.

    Args:
        message: what was found, and what was expected instead.
        hint: what the user can do; empty where there is nothing to do.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type["CenterNetError"], tuple[str, str]]:
        # Exception's own pickling would replay only args[0]: the hint must survive a process pool.
        return type(self), (self.message, self.hint)


class ModelError(CenterNetError):
    """The ONNX graph cannot be read, or is not a graph that can be built."""


class SpecError(CenterNetError):
    """A ModelSpec or a recipe is wrong, or does not fit the graph."""


class BundleError(CenterNetError):
    """An engine bundle is missing, incomplete, changed, or built for something else."""


class CalibrationError(CenterNetError):
    """Calibration images or a calibration record cannot be used."""


class BackendError(CenterNetError):
    """TensorRT, ONNX Runtime or another backend is missing or refused the work."""


class CudaError(CenterNetError):
    """A CUDA driver, NVRTC or device failure."""


class InputError(CenterNetError):
    """An image or argument given by the caller cannot be used."""
