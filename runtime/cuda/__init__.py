"""The CUDA driver: devices, memory, streams, events, modules and graphs, over cuda-bindings or PyCUDA."""
