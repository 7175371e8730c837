"""The GPU backend: kernels and engine on streams."""
