"""ONNX graphs: reading, editing, shapes, external data, comparison."""
