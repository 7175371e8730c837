"""Measured on a GPU: kernels, TensorRT for RTX, bundles, a soak; and the steps of `make gpu-test` and `make gpu-bench`."""
