import json

import pytest

from centernet_trt.errors import BackendError
from centernet_trt.runtime.trt.inspector import EngineLayer, parse_layers


def test_names_alone_and_all_that_is_known() -> None:
    rows = [
        "conv1 + relu",
        {"Name": "conv2", "LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "Half NHWC8"}]},
        {"Name": "conv3", "Inputs": [{"Datatype": "INT8"}], "Outputs": []},
        {"Name": "split", "Outputs": [{"Datatype": "INT8"}, {"Name": "untold"}]},
    ]
    assert parse_layers(json.dumps({"Layers": rows, "Bindings": ["x"]})) == [
        EngineLayer("conv1 + relu"),
        EngineLayer("conv2", "CaskConvolution", ("Half NHWC8",)),
        EngineLayer("conv3", "", (), ("INT8",)),
        EngineLayer("split", "", ("INT8", "?")),
    ]


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", "{}", '{"Layers": 3}', '{"Layers": [{}]}', '{"Layers": [3]}']
)
def test_something_else_is_an_error(text: str) -> None:
    with pytest.raises(BackendError, match="expected a list of layers"):
        parse_layers(text)
