"""CenterNetError and its subclasses.

Each says what was expected and what was found (``message``), and what to do about it (``hint``).
"""


class CenterNetError(Exception):
    """Base of all errors that this package raises on purpose; can be pickled. `str()` gives the message and the hint.

    Attributes:
        message: what was expected, and what was found instead.
        hint: what the user can do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        """Make an error.

        Args:
            message: see the class.
            hint: see the class.
        """
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type["CenterNetError"], tuple[str, str]]:
        # Exception's own pickling would replay only args[0]: the hint must survive a process pool.
        return type(self), (self.message, self.hint)


class ModelError(CenterNetError):
    """An ONNX graph cannot be read, or cannot be built."""


class ToleranceError(ModelError):
    """A built graph differs from its source by more than a limit. The command line exits with code 3."""


class SpecError(CenterNetError):
    """A ModelSpec or a recipe is invalid, or does not match the graph."""


class BundleError(CenterNetError):
    """An engine bundle is missing, incomplete or changed, or was built for something else."""


class CalibrationError(CenterNetError):
    """Calibration images or a calibration record are invalid."""


class BackendError(CenterNetError):
    """TensorRT, ONNX Runtime or another backend is missing or failed."""


class CudaError(CenterNetError):
    """The CUDA driver, NVRTC or a GPU failed."""


class InputError(CenterNetError):
    """An image or argument of the caller is invalid."""
