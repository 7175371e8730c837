"""`cold_start`: time to first detection in a new interpreter.

    python -m centernet_trt.evaluation.bench.cold_start BUNDLE IMAGE MODE THREADS BACKEND GPU

Run as a module, it prints one JSON object of seconds: `import` (the package and its dependencies), `load` (the bundle
and its session), `first` (the first image's detections after that), `second` (the same image again) and `total`, from
the interpreter's first line to the first detections. The files are in the page cache from the second run on.
"""

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from centernet_trt.errors import BackendError

if TYPE_CHECKING:
    from centernet_trt.evaluation.bench.timing import ChosenBackend
    from centernet_trt.runtime.host.onnxruntime import Mode

# Run as a module, this file is imported before anything heavy: the clock starts here.
_BEGAN = time.perf_counter()


def cold_start(
    bundle: Path,
    image: Path,
    mode: str,
    threads: int | None,
    rounds: int = 3,
    backend: "ChosenBackend" = "onnxruntime",
    device: int | str = 0,
) -> list[dict[str, float]]:
    """Seconds by part, as the module describes them, for each of several new interpreters.

    Args:
        bundle: its folder.
        image: a file.
        mode: of ONNX Runtime.
        threads: of ONNX Runtime; None for its own choice.
        rounds: number of interpreters, one after the other.
        backend: where the network runs.
        device: the GPU, for TensorRT.

    Raises:
        BackendError: an interpreter failed; its last line of output is in the message.
    """
    words = [str(bundle.resolve()), str(image.resolve()), mode, str(threads or 0), backend, str(device)]
    found = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-m", "centernet_trt.evaluation.bench.cold_start", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no output"]
            raise BackendError(
                f"a new interpreter cannot run {bundle}: {last[0]}", "run `centernet-trt doctor`"
            )
        found.append({key: float(value) for key, value in json.loads(done.stdout).items()})
    return found


def main(bundle: str, image: str, mode: str, threads: str, backend: str, device: str) -> dict[str, float]:
    """Seconds by part in this interpreter; the arguments are the command line's."""
    from centernet_trt.runtime.detector import Detector
    from centernet_trt.runtime.images import read_image

    imported = time.perf_counter()
    pixels = read_image(Path(image))
    marks = [time.perf_counter()]
    chosen: Mode = "faithful" if mode == "faithful" else "fast"
    on: ChosenBackend = "tensorrt" if backend == "tensorrt" else "onnxruntime"
    number = int(threads) or None
    with Detector.load(bundle, backend=on, mode=chosen, threads=number, device=device) as detector:
        marks.append(time.perf_counter())
        for _ in range(2):
            detector.detect(pixels)
            marks.append(time.perf_counter())
    load, first, second = (after - before for before, after in pairwise(marks))
    import_ = imported - _BEGAN
    return {
        "import": import_,
        "load": load,
        "first": first,
        "second": second,
        "total": import_ + load + first,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
