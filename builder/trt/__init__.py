"""Compile a typed graph into a TensorRT plan."""
