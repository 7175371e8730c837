"""Graph passes: each is a function from ONNX model to ONNX model."""
