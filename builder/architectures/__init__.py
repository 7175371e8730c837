"""The seed networks, written as ONNX graphs: one file a family, tensors named as in the public checkpoints."""
