"""A detector at the exit of its process, on the stand-in driver."""

import importlib.util

import pytest
from helpers.standin_process import run_script

EXIT = """
import sys
from pathlib import Path
from helpers.standin_pipeline import pictures, tiny, world
from centernet_trt.runtime import Detector
scope = world(Path(sys.argv[1]))
scope.__enter__()
detector = Detector.load(tiny(Path(sys.argv[1])), backend="tensorrt", max_pixels=10000, binding=sys.argv[2])
print(len(detector.detect(pictures(1, 60, 60)[0], 0.3)))
pinned = detector.pinned_image(20, 20)
"""


@pytest.mark.parametrize("binding", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize("ending", ["", "del detector", "raise SystemExit(0)"])
def test_a_detector_that_nobody_closed_is_closed_at_exit(
    tmp_path_factory: pytest.TempPathFactory, ending: str, binding: str
) -> None:
    if binding == "pycuda" and importlib.util.find_spec("pycuda") is None:
        pytest.skip("PyCUDA is not installed (make gpu)")
    done = run_script(EXIT + ending, tmp_path_factory.mktemp("exit"), binding)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert "STANDIN" not in done.stderr
