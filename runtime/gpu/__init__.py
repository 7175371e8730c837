"""The GPU backend: CUDA kernels and a TensorRT engine on streams."""
