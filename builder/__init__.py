"""Compiles a CenterNet ONNX graph into an engine bundle."""
