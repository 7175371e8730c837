"""Heads of the two public models on photographs, decoded by the kernel and by the oracle."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers.cpu_kernels import CpuMachine
from helpers.kernel_runs import DecodeRun, check_decode

from centernet_trt.runtime.geometry import place
from centernet_trt.runtime.host.preprocess import preprocess
from centernet_trt.runtime.presets import preset
from centernet_trt.runtime.spec import ModelSpec

MODELS = {
    "centerface": ("centerface/centerface.onnx", "demo_images"),
    "ttf-ltrb": ("mb3_centernet_coco/mb3_centernet.onnx", "coco_val2017_dev/images"),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("half", [False, True])
def test_real_heads(plain: CpuMachine, shared: Path, name: str, half: bool) -> None:
    model, pictures = MODELS[name]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(
        _any_size(shared / "assets" / model), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    spec = _spec(name, names)
    for path in sorted((shared / "assets" / pictures).glob("*.jpg"))[:2]:
        picture = cv2.imread(str(path))
        assert picture is not None
        scale = min(1.0, 640 / max(picture.shape))
        image = np.asarray(cv2.resize(picture, None, fx=scale, fy=scale), dtype=np.uint8)
        placement = place(spec.input, image.shape[1], image.shape[0])
        tensor = preprocess([image], [placement], spec.input)
        outputs = session.run(list(spec.heads.tensors), {session.get_inputs()[0].name: tensor})
        heads: dict[str, Any] = dict(zip(spec.heads.tensors, outputs, strict=True))
        if half:
            heads = {tensor: values.astype(np.float16) for tensor, values in heads.items()}
        for threshold in (0.0, spec.threshold):
            run = DecodeRun(plain, heads, spec, [placement], threshold)
            found = run.launch()
            check_decode(run, heads, found)
            assert threshold > 0 or found.count[0] == spec.top_k


def _any_size(path: Path) -> bytes:
    """The model with its batch, height and width left open; CenterFace's file fixes them to 10 x 32 x 32."""
    model = onnx.load(str(path))
    if path.name == "centerface.onnx":
        for value in (*model.graph.input[:1], *model.graph.output):
            for axis in (0, 2, 3):
                value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
        del model.graph.value_info[:]
    return model.SerializeToString()


def _spec(name: str, outputs: list[str]) -> ModelSpec:
    spec = preset(name)
    missing = set(spec.heads.tensors) - set(outputs)
    assert not missing, f"the model has {outputs}"
    return spec
